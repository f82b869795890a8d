"""Virtual machines: lab hosts with a kernel of their own.

For what a container cannot show: kernel modules, a real reboot, encrypted disks, and a power cut, which loses
everything the host had not yet written to its disk. Under emulation such a machine boots in half a minute.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any, ClassVar, Literal

from gpurack.lab import vmimage
from gpurack.lab.machine import LabError, Machine, require, started

ACCELERATOR = "GPURACK_LAB_ACCEL"
"""Environment variable: "kvm" or "tcg" (emulation in software)."""

CPUS = {"kvm": 2, "tcg": 1}
"""Processors by accelerator. With two emulated ones, a kernel that patches itself while it boots meets its own
breakpoint once in a while, and panics ("Oops: int3" in sched_clock_cpu)."""

MEMORY_MIB = 2048
BOOT_SECONDS = 300
"""For how long a boot is waited for; emulation on a busy machine takes minutes."""

KILL_SECONDS = 20
PORT_ATTEMPTS = 5


def accelerator() -> Literal["kvm", "tcg"]:
    """Return how virtual machines are run on this machine.

    What ``GPURACK_LAB_ACCEL`` says; without it, KVM on real hardware and emulation inside of a virtual machine: nested
    KVM often opens and then fails in the middle of a boot, and there is no telling before.

    Raises:
        LabError: the variable is set to something else.
    """
    chosen = os.environ.get(ACCELERATOR, "")
    if chosen == "kvm":
        return "kvm"
    if chosen == "tcg":
        return "tcg"
    if chosen:
        raise LabError(f'{ACCELERATOR}={chosen}: must be "kvm" or "tcg" (emulation)')
    nested = re.search(r"^flags\s*:.*\bhypervisor\b", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return "kvm" if os.access("/dev/kvm", os.R_OK | os.W_OK) and not nested else "tcg"


class QemuMachine(Machine):
    """A QEMU virtual machine; its SSH server answers on a port of this machine's loopback address."""

    driver: ClassVar[str] = "qemu"

    def __init__(self, name: str, release: str, address: str, port: int = 22, owner: int | None = None) -> None:
        super().__init__(name, release, address, port, owner)
        self.image: vmimage.Image | None = None
        self.process: int | None = None
        self.process_started: int | None = None

    @classmethod
    def place(
        cls, name: str, release: str, *, taken: list[Machine], owner: int | None, disk_mib: int | None
    ) -> QemuMachine:
        """Return a new machine on a free port.

        Raises:
            LabError: a disk size is asked for, or no port is free.
        """
        if disk_mib is not None:
            raise LabError(f"{name}: a virtual machine's disk has {vmimage.SIZE_GIB} GiB, no other size can be had")
        used = {(machine.address, machine.port) for machine in taken}
        for _ in range(PORT_ATTEMPTS):
            with socket.create_server(("127.0.0.1", 0)) as probe:
                place = probe.getsockname()
            if place not in used:
                return cls(name, release, place[0], place[1], owner)
        raise LabError(f"{name}: no free port on the loopback address")

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> QemuMachine:
        """Return the machine another process has made."""
        machine = cls(state["name"], state["release"], state["address"], state["port"])
        machine.owner, machine.owner_started = state["owner"], state["owner_started"]
        machine.process, machine.process_started = state["process"], state["process_started"]
        if state["image"]:
            machine.image = vmimage.Image.at(state["release"], Path(state["image"]))
        return machine

    def state(self) -> dict[str, Any]:
        """Return what another process needs to know of the machine."""
        return {
            **super().state(),
            "image": str(self.image.folder) if self.image else None,
            "process": self.process,
            "process_started": self.process_started,
        }

    @property
    def running(self) -> bool:
        """Whether its QEMU process is alive."""
        return self.process is not None and started(self.process) == self.process_started is not None

    def create(self) -> None:
        """Make the machine's keys, and its disk: an overlay on the release's image, built if need be."""
        require(vmimage.TOOLS)
        self.make_keys()
        self.image = vmimage.image(self.release, self.packages)
        vmimage.overlay(self.image, self.folder / "disk.qcow2")
        text = {path: path.read_text() for path in self.folder.glob("ssh_host_*_key*")}
        files = {f"/etc/ssh/{path.name}": (content, 0o644 if path.suffix else 0o600) for path, content in text.items()}
        files["/etc/hostname"] = (f"{self.name}\n", 0o644)
        files["/etc/hosts"] = (f"127.0.0.1 localhost\n127.0.1.1 {self.name}\n", 0o644)
        files[vmimage.AUTHORIZED_KEYS] = (self.key.with_suffix(".pub").read_text(), 0o600)
        identity = self.folder / "identity.tar"
        identity.touch(mode=0o600)
        identity.write_bytes(vmimage.identity(files))

    def start(self) -> None:
        """Boot the machine and wait until SSH answers."""
        if self.running:
            return
        with (self.folder / "console.log").open("ab") as console:
            process = subprocess.Popen(
                self._command(), stdin=subprocess.DEVNULL, stdout=console, stderr=console, start_new_session=True
            )
        self.process, self.process_started = process.pid, started(process.pid)
        self.save()
        self.wait_for_ssh(BOOT_SECONDS)

    def _command(self) -> list[str]:
        """Return QEMU's command line."""
        if self.image is None:
            raise LabError(f"{self.name}: the machine has no disk; remove it with: gpurack lab down {self.name}")
        kind = accelerator()
        engine, cpu = ("kvm", "host") if kind == "kvm" else ("tcg,tb-size=1024", "qemu64")
        # cache=unsafe: a flush goes to this machine's page cache only. That outlives QEMU, so what the guest has
        # synchronised survives its power cut, and nothing waits for this machine's disk.
        disk = f"file={self.folder / 'disk.qcow2'},if=virtio,format=qcow2,cache=unsafe"
        return [
            *("qemu-system-x86_64", "-nodefaults", "-name", self.name, "-accel", engine, "-cpu", cpu),
            *("-smp", str(CPUS[kind]), "-m", str(MEMORY_MIB), "-drive", disk),
            *("-kernel", str(self.image.kernel), "-initrd", str(self.image.initrd), "-append", vmimage.COMMAND_LINE),
            *("-netdev", f"user,id=lan,hostfwd=tcp:{self.address}:{self.port}-:22"),
            *("-device", "virtio-net-pci,netdev=lan", "-device", "virtio-rng-pci"),
            *("-fw_cfg", f"name={vmimage.IDENTITY},file={self.folder / 'identity.tar'}"),
            *("-display", "none", "-serial", "stdio", "-monitor", "none"),
        ]

    def kill(self) -> None:
        """Cut the power."""
        if self.running and self.process is not None:
            # Not /proc: QEMU's first thread may be dead while another one still holds the disk.
            with contextlib.suppress(ProcessLookupError):
                handle = os.pidfd_open(self.process)
                try:
                    signal.pidfd_send_signal(handle, signal.SIGKILL)
                    if not select.select([handle], [], [], KILL_SECONDS)[0]:
                        raise LabError(f"{self.name}: QEMU, process {self.process}, survives a kill")
                finally:
                    os.close(handle)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self.process, os.WNOHANG)
        self.process = None

    def release_resources(self) -> None:
        """Do nothing: all there is of a machine that is off lies in its folder."""

    def _wait_until(self, condition: Any, what: str, seconds: float = BOOT_SECONDS) -> None:
        super()._wait_until(condition, what, max(seconds, BOOT_SECONDS))
