"""Virtual machines of the lab: what a container cannot show."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpurack import lab
from gpurack.lab import Machine
from gpurack.lab.machine import HOSTS

pytestmark = pytest.mark.vm


@pytest.fixture(scope="module")
def vm() -> Iterator[Machine]:
    """One booted virtual machine; the last test removes it."""
    [machine] = lab.up([f"vm{os.getpid()}"], driver="qemu", owned=True)
    yield machine
    lab.down([machine])


def processes_of(name: str) -> list[str]:
    """Return the command lines of this machine's processes that use a host's folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if f"{HOSTS}/{name}/" in command:
            found.append(command)
    return found


def test_system_is_running_under_its_own_name(vm: Machine) -> None:
    assert vm.ssh("systemctl is-system-running --wait", timeout=120).stdout.strip() == "running"
    assert vm.ssh("hostname").stdout.strip() == vm.name
    assert vm.ssh("stat -c %U:%a /home/admin/.ssh/authorized_keys").stdout.strip() == "admin:600"


def test_kernel_is_its_own(vm: Machine) -> None:
    assert vm.ssh("uname -r").stdout.strip() != platform.release()
    vm.ssh("modprobe dm_crypt")
    assert "dm_crypt" in vm.ssh("cat /proc/modules").stdout


def test_package_mirror_is_reached(vm: Machine) -> None:
    vm.ssh("apt-get update --error-on=any", timeout=180)


def test_reboot_is_real(vm: Machine) -> None:
    before = vm.ssh("cat /proc/sys/kernel/random/boot_id").stdout
    vm.reboot()
    assert vm.ssh("cat /proc/sys/kernel/random/boot_id").stdout != before
    assert "dm_crypt" not in vm.ssh("cat /proc/modules").stdout


def test_power_cut_loses_what_was_not_synchronised(vm: Machine) -> None:
    vm.ssh("echo kept > /root/kept; sync; echo lost > /root/lost")
    vm.kill()
    assert not vm.running
    assert not processes_of(vm.name)
    vm.start()
    assert vm.ssh("cat /root/kept").stdout == "kept\n"
    assert vm.ssh("cat /root/lost", check=False).stdout == ""
    assert json.loads((vm.folder / "state.json").read_text())["driver"] == "qemu"


def test_nothing_is_left(vm: Machine) -> None:
    lab.down([vm])
    assert not vm.running
    assert not processes_of(vm.name)
    assert not vm.folder.exists()
    assert vm.name not in [machine.name for machine in lab.hosts()]
