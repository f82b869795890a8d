"""The driver and the kernel, in a virtual machine with a kernel of its own: kernel updates, loading, real reboots.

The driver's packages are doubles (tests/doubles/nvidia_packages): NVIDIA's source takes hours to compile in an emulated
machine. Kernels, headers, DKMS, initramfs-tools, modprobe and the reboots are real.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gpurack import lab
from gpurack.lab import Machine, pci
from gpurack.lab.qemu import QemuMachine
from tests.doubles.nvidia_packages.packages import make
from tests.testbed.site import Run, Site

pytestmark = [pytest.mark.vm, pytest.mark.slow]

FIRST, SECOND = "550.163.01", "550.200.01"
SLOW_SECONDS = 1800
# What building a module takes, put into the image natively: installing it in the emulated machine takes many minutes.
BUILD_TOOLS = ("dkms", "linux-headers-cloud-amd64")
BACKPORTS = "deb http://deb.debian.org/debian trixie-backports main"


@pytest.fixture(scope="module")
def vm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[QemuMachine]:
    """A virtual machine that pretends to have a card, at every boot."""
    [machine] = lab.up([f"vd{os.getpid()}"], driver="qemu", owned=True, packages=BUILD_TOOLS)
    assert isinstance(machine, QemuMachine)
    bus = tmp_path_factory.mktemp("pci") / "pretended-pci"
    pci.pretend(bus, ["2684"])
    send(machine, bus.parent, "/var/lib")
    machine.ssh("echo '/var/lib/pretended-pci /sys/bus/pci/devices none bind' >> /etc/fstab; mount -a")
    yield machine
    lab.down([machine])


def send(machine: Machine, folder: Path, to: str) -> None:
    """Copy what is in a folder to the host."""
    with subprocess.Popen(["tar", "-C", str(folder), "-cf", "-", "."], stdout=subprocess.PIPE) as tar:
        remote = [*machine.ssh_command(), f"sudo tar -x --no-same-owner --no-overwrite-dir -C {to} -f -"]
        subprocess.run(remote, stdin=tar.stdout, check=True)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory with the driver's packages on this machine."""
    return make(tmp_path_factory.mktemp("packages"), FIRST)


@pytest.fixture(scope="module")
def site(vm: QemuMachine, directory: Path, site_for: Callable[..., Site]) -> Site:
    """Return a site of the machine, whose first run installed, built and loaded the driver."""
    settings: dict[str, Any] = {"source": "local", "local_directory": str(directory)}
    site = site_for(vm, {"nvidia_driver": settings})
    first = site.run("nvidia_driver", timeout=SLOW_SECONDS)
    assert first.ok, first.output
    return site


def changed(run: Run, vm: Machine) -> int:
    """Return how many operations changed something in a run that must succeed."""
    assert run.ok, run.output
    return run.changed[vm.name]


def loaded(vm: Machine) -> str:
    """Return the version of the loaded module."""
    return vm.ssh("cat /sys/module/nvidia/version").stdout.strip()


def boot_id(vm: Machine) -> str:
    """Return the identity of the machine's boot."""
    return vm.ssh("cat /proc/sys/kernel/random/boot_id").stdout


def test_driver_is_built_for_the_running_kernel_and_loaded_without_a_reboot(site: Site, vm: QemuMachine) -> None:
    assert loaded(vm) == FIRST
    site.assert_controls("nvidia_driver", vm)
    assert vm.ssh("systemctl is-active nvidia-persistenced").stdout.strip() == "active"
    assert changed(site.run("nvidia_driver", timeout=SLOW_SECONDS), vm) == 0


def test_initial_ram_disk_keeps_nouveau_away(site: Site, vm: QemuMachine) -> None:
    listed = vm.ssh("lsinitramfs /boot/initrd.img-$(uname -r)", timeout=300).stdout
    assert "etc/modprobe.d/gpurack-nouveau.conf" in listed


def test_module_in_use_needs_a_reboot_and_gets_one_only_where_it_is_allowed(
    site: Site, vm: QemuMachine, directory: Path
) -> None:
    """A program has the driver's device file open, as everything that uses a card has."""
    vm.ssh("cp /lib/modules/$(uname -r)/updates/dkms/nvidia.ko* /root")
    vm.ssh("systemd-run --quiet sh -c 'exec sleep infinity < /dev/nvidiactl'")
    before = boot_id(vm)
    shutil.rmtree(directory)
    make(directory, SECOND)
    run = site.run("nvidia_driver", timeout=SLOW_SECONDS)
    assert run.ok, run.output
    assert "Left to do" in run.output and f"holds module {FIRST}, and {SECOND} is installed" in run.output, run.output
    assert {"NVDR-02", "NVDR-11"} <= site.failing("nvidia_driver", vm)

    elsewhere = f"{(int(vm.ssh('date +%H').stdout) + 12) % 24:02d}"
    window = {"start": f"{elsewhere}:00", "end": f"{elsewhere}:30"}
    site.settings["nvidia_driver"] |= {"reboot": "window", "reboot_window": window}
    run = site.run("nvidia_driver", timeout=SLOW_SECONDS)
    assert run.ok and f"the window is {elsewhere}:00-{elsewhere}:30" in run.output, run.output
    assert (loaded(vm), boot_id(vm)) == (FIRST, before)

    del site.settings["nvidia_driver"]["reboot_window"]
    site.settings["nvidia_driver"]["reboot"] = "when_needed"
    assert changed(site.run("nvidia_driver", timeout=SLOW_SECONDS), vm) > 0
    assert boot_id(vm) != before
    assert loaded(vm) == SECOND
    site.assert_controls("nvidia_driver", vm)


def test_other_module_is_replaced_without_a_reboot_where_nobody_uses_it(site: Site, vm: QemuMachine) -> None:
    before = boot_id(vm)
    vm.ssh(
        "systemctl stop nvidia-persistenced; rmmod nvidia_uvm nvidia; xz -d -k /root/nvidia.ko.xz 2>/dev/null; "
        "insmod /root/nvidia.ko && modprobe nvidia-uvm; systemctl start nvidia-persistenced"
    )
    assert loaded(vm) == FIRST
    assert changed(site.run("nvidia_driver", timeout=SLOW_SECONDS), vm) > 0
    assert (loaded(vm), boot_id(vm)) == (SECOND, before)


def test_kernel_update_brings_the_module_for_the_new_kernel_before_the_reboot(
    site: Site, vm: QemuMachine, tmp_path: Path
) -> None:
    """A newer kernel out of backports, as unattended hands would install it; the role is not run in between."""
    site.settings["nvidia_driver"]["reboot"] = "never"
    vm.ssh(f"echo '{BACKPORTS}' > /etc/apt/sources.list.d/new-kernel.list && apt-get update", timeout=600)
    install = "DEBIAN_FRONTEND=noninteractive apt-get -y --no-install-recommends -t trixie-backports install"
    vm.ssh(f"{install} linux-image-cloud-amd64 linux-headers-cloud-amd64", timeout=SLOW_SECONDS)
    running = vm.ssh("uname -r").stdout.strip()
    kernels = vm.ssh("ls /boot | sed -n 's/^vmlinuz-//p'").stdout.split()
    [new] = [kernel for kernel in kernels if kernel != running]
    assert f"nvidia-current/{SECOND}, {new}, x86_64: installed" in vm.ssh("dkms status").stdout
    assert "updates/dkms/nvidia.ko" in vm.ssh(f"find /lib/modules/{new} -name 'nvidia.ko*'").stdout

    assert site.failing("nvidia_driver", vm) == {"NVDR-11"}
    run = site.run("nvidia_driver", timeout=SLOW_SECONDS)
    assert run.ok and f"kernel {running} runs, and {new} is installed" in run.output, run.output

    # The lab starts kernels from outside of the disk: the new one is handed to it, as a boot loader would.
    assert vm.image is not None
    for name in ("vmlinuz", "initrd.img"):
        with (tmp_path / name).open("wb") as file:
            remote = [*vm.ssh_command(), f"sudo cat /boot/{name}-{new}"]
            subprocess.run(remote, stdout=file, check=True)
    vm.ssh("sync")
    vm.kill()
    vm.image = dataclasses.replace(vm.image, kernel=tmp_path / "vmlinuz", initrd=tmp_path / "initrd.img")
    vm.start()
    assert vm.ssh("uname -r").stdout.strip() == new
    assert loaded(vm) == SECOND
    site.assert_controls("nvidia_driver", vm)
    assert changed(site.run("nvidia_driver", timeout=SLOW_SECONDS), vm) == 0
