"""Disposable hosts for tests, for demonstrations, and for trying an inventory before production sees it.

:func:`up` boots Debian hosts on this machine, :func:`hosts` lists them; ``gpurack lab`` is the same as a command.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import shutil
from collections.abc import Iterable, Sequence
from importlib import import_module
from pathlib import Path

from gpurack.lab import network, nspawn
from gpurack.lab.machine import HOSTS, NAME, LabError, Machine, lab_lock, require
from gpurack.lab.rootfs import RELEASES, RootfsError, root

__all__ = ["DRIVERS", "RELEASES", "LabError", "Machine", "RootfsError", "down", "hosts", "up"]

DRIVERS = {"nspawn": "gpurack.lab.nspawn:NspawnMachine", "qemu": "gpurack.lab.qemu:QemuMachine"}
"""Kinds of test hosts: a container that boots like a machine, and a virtual machine with its own kernel."""


def up(
    names: Sequence[str],
    *,
    release: str = "trixie",
    driver: str = "nspawn",
    owned: bool = False,
    disk_mib: int | None = None,
    cards: Sequence[str] = (),
    nvswitches: int = 0,
    packages: Sequence[str] = (),
) -> list[Machine]:
    """Boot hosts and wait until each answers on SSH; all of them or none.

    Args:
        names: lower case letters, digits and dashes.
        release: key of :data:`RELEASES`.
        driver: key of :data:`DRIVERS`.
        owned: the hosts end with this process: however it ends.
        disk_mib: size of each host's disk, at least 64; the driver's default when None.
        cards: PCI device ids of NVIDIA cards that each host pretends to have, such as ``2684``; without a driver.
        nvswitches: number of pretended NVSwitch bridges.
        packages: Debian packages in a virtual machine's image besides.

    Raises:
        LabError: a name is taken or none, a tool is missing, a host does not come up, or cannot have cards.
        RootfsError: the root file system cannot be built.
    """
    require(nspawn.TOOLS)
    if packages and driver != "qemu":
        raise LabError(f"packages are put into the images of virtual machines (driver qemu), not of {driver} hosts")
    for name in names:
        if not NAME.fullmatch(name):
            raise LabError(f"{name!r} is no host name: lower case letters, digits and dashes, at most 31")
    root(release)
    made: list[Machine] = []
    try:
        for name in names:
            machine = _register(name, release, driver, owned=owned, disk_mib=disk_mib)
            made.append(machine)
            machine.packages = tuple(packages)
            if owned:
                atexit.register(_down_quietly, machine)
                import_module("gpurack.lab.janitor").watch(os.getpid())
            machine.create()
            if cards or nvswitches:
                machine.pretend_cards(cards, nvswitches=nvswitches)
            machine.save()
            machine.start()
    except BaseException:
        down(made)
        raise
    return made


def hosts() -> list[Machine]:
    """Return the hosts of the lab; those whose owner is gone are removed first."""
    with lab_lock():
        return _hosts()


def down(machines: Iterable[Machine]) -> None:
    """Remove hosts, and with the last one the lab's network."""
    for machine in machines:
        machine.down()
    if not HOSTS.exists():
        return
    with lab_lock():
        if not _hosts():
            network.down()


def _register(name: str, release: str, driver: str, *, owned: bool, disk_mib: int | None) -> Machine:
    """Give a host its folder and address; from here on other processes know of it."""
    with lab_lock():
        taken = _hosts()
        if name in [machine.name for machine in taken]:
            raise LabError(f"there is a host {name} already: gpurack lab down {name} removes it")
        owner = os.getpid() if owned else None
        machine = _driver(driver).place(name, release, taken=taken, owner=owner, disk_mib=disk_mib)
        machine.folder.mkdir(mode=0o700)
        machine.save()
        return machine


def _driver(name: str) -> type[Machine]:
    if name not in DRIVERS:
        raise LabError(f"no driver {name}; known are {', '.join(DRIVERS)}")
    module, _, kind = DRIVERS[name].partition(":")
    driver: type[Machine] = getattr(import_module(module), kind)
    return driver


def _hosts() -> list[Machine]:
    found = []
    for folder in sorted(HOSTS.glob("*/")):
        try:
            state = json.loads((folder / "state.json").read_text())
            machine = _driver(state["driver"]).from_state(state)
        except (OSError, ValueError, KeyError):
            shutil.rmtree(folder, ignore_errors=True)  # cut off before its state was written: nothing runs yet
            continue
        if machine.orphaned:
            machine.down()
        else:
            found.append(machine)
    return found


def _down_quietly(machine: Machine) -> None:
    """Remove a host at this process's end, unless it is gone, or belongs to the process this one was forked from."""
    if machine.owner == os.getpid() and Path(machine.folder).exists():
        with contextlib.suppress(LabError):
            down([machine])
