"""Controls of the nvidia_driver role."""

from __future__ import annotations

import re
import shlex
from typing import Any

from pyinfra.api import FactBase, StringCommand

from gpurack.controls import NotApplicable, control
from gpurack.facts.driver import Dkms, Held, KernelState, RunningModule, StaleInitramfs
from gpurack.facts.gpu import PciDevices
from gpurack.gpu.driver_version import MINIMUM, key, upstream
from gpurack.gpu.kernels import Kernels
from gpurack.gpu.models import Architecture, Card, PciInventory
from gpurack.gpu.reboot import reasons
from roles.nvidia_driver.settings import NvidiaDriverSettings

NOUVEAU = "/etc/modprobe.d/gpurack-nouveau.conf"
DRIVER_PACKAGES = r"nvidia-(open-)?(kernel|dkms|smi|headless|utils|compute|driver|fabricmanager)|lib(nvidia|cuda)"


def read(host: Any, fact: FactBase[Any], **arguments: Any) -> Any:
    """Return what one of gpurack's facts says of a host, read over testinfra."""
    command = fact.command(**arguments)
    text = command.get_raw_value() if isinstance(command, StringCommand) else str(command)
    return fact.process(host.run(text).stdout.splitlines())


def cards_of(host: Any) -> list[Card]:
    """Return the host's cards, but for those passed through to virtual machines; without any nothing applies."""
    inventory: PciInventory = read(host, PciDevices())
    cards = [card for card in inventory.cards if card.driver != "vfio-pci"]
    if not cards:
        raise NotApplicable("no NVIDIA card on the PCI bus")
    return cards


def kernels_of(host: Any) -> Kernels:
    """Return the host's kernels."""
    kernels: Kernels = read(host, KernelState())
    return kernels


def not_in_a_container(host: Any) -> None:
    """End a check that needs the driver in the running kernel."""
    if kernels_of(host).container:
        raise NotApplicable("the kernel, and what is loaded into it, is another host's")


def library_version(host: Any, name: str = "libnvidia-ml.so.1") -> str:
    """Return the version of a library of the driver, by the file that programs load."""
    path = host.run(f"readlink -f $(ldconfig -p | sed -n 's/.*{name} .*=> //p' | head -n 1)").stdout.strip()
    match = re.search(r"\.so\.(\d+(?:\.\d+)+)$", path)
    assert match, f"the driver's library {name} is not there"
    return match[1]


def module_file_version(host: Any, kernel: str, field: str = "version") -> str:
    """Return a field of the module that would be loaded into a kernel; Debian names it nvidia-current."""
    names = "nvidia nvidia-current nvidia-current-open"
    command = f"for m in {names}; do modinfo -k {shlex.quote(kernel)} -F {field} $m 2>/dev/null && break; done"
    return str(host.run(command).stdout.strip())


@control("NVDR-01", f"The driver is {MINIMUM} or newer", severity="critical")
def test_minimum_version(host: Any, settings: NvidiaDriverSettings) -> None:
    """Older drivers fail under the serving stack's load (ERR_GPU)."""
    cards_of(host)
    assert host.run("command -v nvidia-smi").rc == 0, "nvidia-smi is missing"
    version = library_version(host)
    assert key(version) >= key(MINIMUM), f"the driver is {version}, older than {MINIMUM}"
    if settings.version:
        assert version == settings.version, f"the driver is {version}, the settings say {settings.version}"


@control("NVDR-02", "Kernel module and libraries have the same version", severity="critical")
def test_module_and_library_agree(host: Any, settings: NvidiaDriverSettings) -> None:
    """Otherwise no program gets a GPU: "Driver/library version mismatch"."""
    cards_of(host)
    library, kernels = library_version(host), kernels_of(host)
    cuda = library_version(host, "libcuda.so.1")
    assert cuda == library, f"libcuda is {cuda}, libnvidia-ml {library}"
    for kernel in kernels.targets:
        version = module_file_version(host, kernel)
        assert version == library, f"module {version or 'missing'} for kernel {kernel}, libraries {library}"
    if not kernels.container:
        loaded = read(host, RunningModule()).loaded
        assert loaded, "the driver is not loaded into the kernel"
        assert loaded == library, f"module {loaded} is loaded, libraries are {library}"


@control("NVDR-03", "The module is built for the running and the newest kernel", severity="critical")
def test_module_is_built(host: Any, settings: NvidiaDriverSettings) -> None:
    """A kernel without its module boots into a machine without GPUs."""
    cards_of(host)
    if settings.kernel_module == "prebuilt":
        raise NotApplicable("modules come built")
    version, dkms, kernels = library_version(host), read(host, Dkms()), kernels_of(host)
    assert kernels.targets, "no kernel headers are installed"
    missing = [kernel for kernel in kernels.targets if not dkms.installed(version, kernel)]
    assert not missing, f"DKMS has no module {version} for {', '.join(missing)}"


@control("NVDR-04", "Kernel headers are there, and follow kernel updates", severity="high")
def test_headers(host: Any, settings: NvidiaDriverSettings) -> None:
    """Without them the next kernel update brings a kernel without its module."""
    cards_of(host)
    if settings.kernel_module == "prebuilt":
        raise NotApplicable("modules come built")
    kernels = kernels_of(host)
    missing = [kernel for kernel in kernels.targets if kernel not in kernels.headers]
    assert not missing, f"no headers of {', '.join(missing)}"
    installed = host.check_output("dpkg-query -W -f '${db:Status-Abbrev} ${Package}\\n' 'linux-headers-*'")
    metas = set(re.findall(r"^[hi]i  (linux-headers-(?!\d)[a-z0-9.-]+)$", installed, re.MULTILINE))
    assert metas, "no package such as linux-headers-amd64 brings the headers of new kernels"
    wanted = {name.replace("linux-image-", "linux-headers-") for name in kernels.metas}
    assert kernels.container or wanted <= metas, f"not installed: {', '.join(sorted(wanted - metas))}"


@control("NVDR-05", "nouveau keeps away from the cards, at boot too", severity="high")
def test_nouveau(host: Any, settings: NvidiaDriverSettings) -> None:
    """It takes the cards before the driver can."""
    cards = cards_of(host)
    configuration = host.check_output("modprobe --showconfig")
    assert re.search(r"^blacklist nouveau$", configuration, re.MULTILINE), "nouveau is not blacklisted"
    assert host.file(NOUVEAU).exists, f"{NOUVEAU} is missing"
    stale = read(host, StaleInitramfs(), path=NOUVEAU)
    assert not stale, f"older than {NOUVEAU}, so that it may load nouveau: {', '.join(stale)}"
    held = [card.address for card in cards if card.driver == "nouveau"]
    assert not held, f"nouveau drives {', '.join(held)}"
    if not kernels_of(host).container:
        assert not read(host, RunningModule()).nouveau, "nouveau is loaded"


@control("NVDR-06", "The persistence daemon runs and starts at boot", severity="medium")
def test_persistence(host: Any, settings: NvidiaDriverSettings) -> None:
    """Without it the driver forgets power limits and takes seconds to start whenever no program uses a card."""
    cards_of(host)
    enabled = host.run("systemctl is-enabled nvidia-persistenced.service").stdout.strip()
    assert enabled in ("enabled", "static"), f"nvidia-persistenced is {enabled or 'not installed'}: not started at boot"
    if not kernels_of(host).container:
        assert host.run("systemctl --quiet is-active nvidia-persistenced.service").rc == 0, "it is not running"


@control("NVDR-07", "nvidia and nvidia-uvm are loaded at boot", severity="high")
def test_loaded_at_boot(host: Any, settings: NvidiaDriverSettings) -> None:
    """CUDA needs /dev/nvidia-uvm, and a container started before it has been made never sees it."""
    cards_of(host)
    lines = host.run("systemd-analyze cat-config modules-load.d 2>/dev/null || cat /etc/modules-load.d/*").stdout
    named = {line.strip() for line in lines.splitlines()}
    missing = [name for name in ("nvidia", "nvidia-uvm") if not named & {name, name.replace("-", "_")}]
    assert not missing, f"not loaded at boot: {', '.join(missing)}"
    if not kernels_of(host).container:
        assert host.file("/sys/module/nvidia_uvm").exists, "nvidia-uvm is not loaded"


@control(
    "NVDR-08",
    "The driver's version is pinned and held, and never upgraded unattended",
    severity="critical",
    satisfies=["ISO 27001 A.8.32"],
)
def test_pinned_and_held(host: Any, settings: NvidiaDriverSettings) -> None:
    """An upgraded library beside the old loaded module takes every model down."""
    cards_of(host)
    version = library_version(host)
    listed = host.check_output("dpkg-query -W -f '${db:Status-Abbrev} ${Package} ${Version}\\n'")
    rows = [line.split() for line in listed.splitlines() if line[:2] in ("ii", "hi")]
    drivers = {row[1] for row in rows if re.match(DRIVER_PACKAGES, row[1]) and upstream(row[2]) == version}
    keys = {name for name in drivers if re.match(r"nvidia-(smi|utils|.*dkms)|libnvidia-(ml1|compute)|libcuda1", name)}
    loose = keys - read(host, Held())
    assert keys and not loose, f"not held: {', '.join(sorted(loose)) or 'no package of the driver is installed'}"
    policy = host.check_output(f"apt-cache policy {' '.join(sorted(keys))}")
    candidates = re.findall(r"^  Candidate: (\S+)", policy, re.MULTILINE)
    astray = {text for text in candidates if upstream(text) != version}
    assert not astray, f"apt would move the driver to {', '.join(sorted(astray))}"
    loose = {
        text for text, priority in re.findall(r"^ \*\*\* (\S+) (\d+)", policy, re.MULTILINE) if int(priority) <= 1000
    }
    assert not loose, f"not pinned: a newer version than {', '.join(sorted(loose))} would be taken"
    # What depends on held packages moves only with them; what nothing holds is kept by the pin.
    moves = re.findall(r"^Inst (\S+)", host.run("apt-get --simulate dist-upgrade").stdout, re.MULTILINE)
    assert not drivers & set(moves), f"an upgrade would take along {', '.join(sorted(drivers & set(moves)))}"


@control("NVDR-09", "Secure Boot lets the module in", severity="high")
def test_secure_boot(host: Any, settings: NvidiaDriverSettings) -> None:
    """The firmware refuses modules whose key it does not know, and the machine boots without GPUs."""
    cards_of(host)
    state = read(host, RunningModule())
    if not state.secure_boot:
        raise NotApplicable("Secure Boot is off")
    if settings.kernel_module == "prebuilt":
        raise NotApplicable("modules come signed by Ubuntu")
    assert state.enrolled, f"the key of the module, {state.mok}, is not enrolled: mokutil --import {state.mok}, reboot"


@control("NVDR-10", "The fabric manager has the driver's version and runs", severity="critical")
def test_fabric_manager(host: Any, settings: NvidiaDriverSettings) -> None:
    """Without the very same version NVSwitches stay unconfigured, and CUDA does not start on any card."""
    cards_of(host)
    if not read(host, PciDevices()).nvswitches:
        raise NotApplicable("no NVSwitch on the PCI bus")
    listed = host.run("dpkg-query -W -f '${db:Status-Abbrev} ${Version}\\n' 'nvidia-fabricmanager*'").stdout
    versions = {upstream(line.split()[1]) for line in listed.splitlines() if line[:2] in ("ii", "hi")}
    library = library_version(host)
    assert versions == {library}, f"fabric manager {', '.join(versions) or 'not installed'}, driver {library}"
    if not kernels_of(host).container:
        assert host.run("systemctl --quiet is-active nvidia-fabricmanager.service").rc == 0, "it is not running"


@control("NVDR-11", "No reboot is pending", severity="medium")
def test_no_reboot_pending(host: Any, settings: NvidiaDriverSettings) -> None:
    """What is installed comes into force at the next boot: better a planned one than the next power cut."""
    cards_of(host)
    not_in_a_container(host)
    kernels = kernels_of(host)
    found = reasons(read(host, RunningModule()), library_version(host), kernels.running, kernels.newest)
    assert not found, f"reboot pending: {'; '.join(found)}"


@control("NVDR-12", "The kernel module is of a kind that works with every card", severity="critical")
def test_flavour(host: Any, settings: NvidiaDriverSettings) -> None:
    """Cards before Turing work only with the proprietary module, those from Blackwell on only with the open one."""
    cards = cards_of(host)
    for kernel in kernels_of(host).targets:
        licence = module_file_version(host, kernel, "license")
        assert licence, f"no module for kernel {kernel}"
        is_open = "GPL" in licence
        for card in cards:
            rank = (card.architecture or Architecture.BLACKWELL).rank
            allowed = (
                is_open if rank >= Architecture.BLACKWELL.rank else not is_open or rank >= Architecture.TURING.rank
            )
            assert allowed, f"{card.name} does not work with the {'open' if is_open else 'proprietary'} module"
