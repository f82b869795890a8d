"""Operations that bring the driver into the running kernel: Secure Boot, loading, reboots, containers afterwards."""

from __future__ import annotations

import shlex
import time as clock
from collections.abc import Generator
from datetime import time, timedelta
from pathlib import Path
from typing import Any

from pyinfra import host, logger
from pyinfra.api import FunctionCommand, operation
from pyinfra.api.command import PyinfraCommand
from pyinfra.api.host import Host
from pyinfra.api.state import State
from pyinfra.operations import server

from gpurack import notices
from gpurack.facts.driver import REBOOTED_FOR, STOPPED_CONTAINERS, ContainersWithGpus, Dkms, KernelState, RunningModule
from gpurack.facts.packages import Packages
from gpurack.gpu.driver_packages import DriverChoice
from gpurack.gpu.driver_version import upstream
from gpurack.gpu.reboot import reasons, within
from gpurack.operations.driver import failure

Commands = Generator[str | PyinfraCommand, None, None]

POLL_SECONDS = 2
DRIVER_SECONDS = 120
"""How long after SSH answers the driver may take to be loaded."""

# Unloading works while nothing holds the modules; what is loaded again is what is installed. rmmod and not modprobe:
# Debian's files have other names (nvidia-current-uvm.ko) than the modules in them.
RELOAD = """\
services=$(systemctl list-units --plain --no-legend --state=active 'nvidia-*.service' | cut -d' ' -f1)
[ -z "$services" ] || systemctl stop $services
for module in nvidia_uvm nvidia_drm nvidia_modeset nvidia_peermem nvidia; do
    [ ! -e /sys/module/$module ] || rmmod $module 2>/dev/null
done
modprobe nvidia && modprobe nvidia-uvm
[ -z "$services" ] || systemctl start $services
exit 0"""

LOAD = """\
services=$(systemctl list-units --plain --no-legend --state=active 'nvidia-*.service' | cut -d' ' -f1)
[ -z "$services" ] || systemctl stop $services
modprobe -r nvidia_uvm nvidia_drm nvidia_modeset nvidia_peermem nvidia 2>/dev/null
[ -e /sys/module/nvidia ] || modprobe nvidia && modprobe nvidia-uvm
[ -z "$services" ] || systemctl start $services
exit 0"""

LOAD = """\
out=$(modprobe nvidia 2>&1 && modprobe nvidia-uvm 2>&1) && exit 0
echo "the driver's module was built but cannot be loaded: $out" >&2
case $out in *"Key was rejected"*) echo "Secure Boot refuses it: enrol its key" >&2 ;; esac
journalctl --dmesg --no-pager --lines 200 --output cat 2>/dev/null | grep -E 'NVRM|nvidia' | tail -n 5 >&2
exit 1"""


@operation()
def signed(choice: DriverChoice) -> Commands:
    """Stop where Secure Boot would refuse the module, and say how its key is enrolled.

    + choice: the driver
    """
    state = host.get_fact(RunningModule)
    if not choice.dkms or not state.locked_out:
        host.noop("nothing keeps the module from being loaded")
        return
    if state.mok is None:
        if host.state.is_executing:
            yield failure("Secure Boot is on, and DKMS has made no key to sign modules with; install dkms 3 or later")
        return
    yield failure(
        f"Secure Boot is on, and the firmware does not know the key that the driver's module is signed with. "
        f"On the host: 1. mokutil --import {state.mok} (asks for a password of your choice, needed once). "
        '2. Reboot. 3. On the console, within ten seconds: "Enroll MOK", "Continue", "Yes", the password, "Reboot". '
        "4. Run again. Or switch Secure Boot off in the firmware"
    )


@operation()
def in_force(choice: DriverChoice, reboot: str, window: tuple[time, time] | None, timeout: timedelta) -> Commands:
    """Bring the installed driver into the running kernel, by a reboot if nothing else helps and it is allowed.

    A module of another version is unloaded first, which works while nobody uses it. After a reboot the host and its
    driver are waited for; a reboot that did not help is not tried again.

    + choice: the driver
    + reboot: ``never``, ``when_needed`` or ``window``
    + window: hours of the day in which a reboot is allowed
    + timeout: longest wait for the driver after a reboot
    """
    kernels = host.get_fact(KernelState)
    found = host.get_fact(Packages, packages=[choice.module], max_age_minutes=0).installed
    if kernels.container or choice.module not in found:
        host.noop("the kernel is another host's" if kernels.container else "the driver is not installed yet")
        return
    version, state = _version(choice, found[choice.module]), host.get_fact(RunningModule)
    if state.loaded and version and state.loaded != version:
        yield RELOAD
        state = host.get_fact(RunningModule)
    if not state.loaded and not state.nouveau and _has_module(choice, version, kernels.running):
        yield LOAD
        state = host.get_fact(RunningModule)
    why = reasons(state, version or state.loaded or "", kernels.running, kernels.newest)
    if not why:
        host.noop(f"driver {state.loaded} is loaded, no reboot is needed")
        return
    if reboot == "never" or not host.state.is_executing:
        if host.state.is_executing:
            notices.leave(host, f"REBOOT NEEDED: {'; '.join(why)}. nvidia_driver.reboot is never: reboot it yourself")
        elif reboot != "never":
            yield "true"
        return
    if window and not within(state.clock, *window):
        notices.leave(
            host,
            f"REBOOT NEEDED: {'; '.join(why)}. It is {state.clock:%H:%M} on the host, the window is "
            f"{window[0]:%H:%M}-{window[1]:%H:%M}: run again then",
        )
        return
    because = "; ".join(why)
    if state.rebooted_for == because:
        yield failure(
            f"the host was rebooted before, and still: {because}. Check the boot loader's default kernel and "
            f"/etc/modprobe.d; remove {REBOOTED_FOR} to have it rebooted again"
        )
        return
    logger.info(f"{host.print_prefix}rebooting: {because}")
    yield f"install -d -m 700 {Path(REBOOTED_FOR).parent} && echo {shlex.quote(because)} > {REBOOTED_FOR} && sync"
    yield from server.reboot._inner(delay=5, reboot_timeout=timeout.total_seconds())
    yield FunctionCommand(_wait_for_driver, (version,), {})
    yield f"rm -f {REBOOTED_FOR}"


def _version(choice: DriverChoice, package_version: str) -> str:
    return upstream(package_version) if choice.dkms else ""


def _has_module(choice: DriverChoice, version: str, kernel: str) -> bool:
    return not choice.dkms or bool(host.get_fact(Dkms).installed(version, kernel))


def _wait_for_driver(state: State, host: Host, version: str) -> bool:
    """Wait until the driver is loaded after a reboot; False, with the reasons, when it is not or a reason is left."""
    del state  # pyinfra passes it to every function
    deadline = clock.monotonic() + DRIVER_SECONDS
    while True:
        found, kernels = host.get_fact(RunningModule), host.get_fact(KernelState)
        left = reasons(found, version or found.loaded or "", kernels.running, kernels.newest)
        if found.loaded and not left:
            return True
        if left or clock.monotonic() > deadline:
            break
        clock.sleep(POLL_SECONDS)
    what = "; ".join(left) or "the driver is not loaded (journalctl -b -u systemd-modules-load)"
    logger.error(f"{host.print_prefix}rebooted, and still: {what}. Check the boot loader's default kernel")
    return False


@operation()
def containers_back() -> Commands:
    """Start the containers again that an upgrade of the driver has stopped.

    Their CDI specification names the old driver's libraries: it is made anew first, where container_toolkit keeps one.
    """
    stopped = host.get_fact(ContainersWithGpus).stopped
    if not stopped:
        host.noop("no container was stopped for the driver")
        return
    ids = " ".join(shlex.quote(item) for item in dict.fromkeys(stopped))
    yield (
        "! systemctl --quiet is-enabled gpurack-cdi.service 2>/dev/null || systemctl restart gpurack-cdi.service; "
        f"for id in {ids}; do docker container inspect $id >/dev/null 2>&1 || continue; docker start $id >/dev/null || "
        f"exit 1; done; rm -f {STOPPED_CONTAINERS}"
    )


def arguments(settings: Any) -> dict[str, Any]:
    """Return the arguments of :func:`in_force` that the settings give."""
    window = settings.reboot_window
    return {
        "reboot": settings.reboot,
        "window": (window.start, window.end) if window else None,
        "timeout": settings.reboot_timeout,
    }
