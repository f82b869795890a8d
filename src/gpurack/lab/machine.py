"""What every test host is, whatever it runs on: an address, a way in, and the ways a host comes to harm."""

from __future__ import annotations

import abc
import json
import os
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from gpurack.lab.rootfs import USER, locked

HOSTS = Path(os.environ.get("GPURACK_LAB_STATE", "/var/lib/gpurack-lab"))
"""One folder a host: its state, keys and disk."""

NAME = re.compile(r"[a-z][a-z0-9-]{0,30}")


class LabError(Exception):
    """A test host cannot be had or reached; the message says what to do."""


class Machine(abc.ABC):
    """A test host.

    Attributes:
        name: its name, in the inventory and as its host name.
        release: ``bookworm`` or ``trixie``.
        address: where its SSH server answers.
        port: on which port.
        user: who logs in, and becomes root without a password.
        owner: process whose end is the host's end too; None when the host stays until ``gpurack lab down``.
        packages: Debian packages its disk image has besides; of virtual machines only.
    """

    driver: ClassVar[str]

    def __init__(self, name: str, release: str, address: str, port: int = 22, owner: int | None = None) -> None:
        self.name = name
        self.release = release
        self.address = address
        self.port = port
        self.user = USER
        self.owner = owner
        self.owner_started = started(owner) if owner else None
        self.packages: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {self.release!r}, {self.address!r})"

    @property
    def folder(self) -> Path:
        """The host's state, keys and disk on this machine."""
        return HOSTS / self.name

    @property
    def key(self) -> Path:
        """Private key that the host accepts."""
        return self.folder / "key"

    @property
    def known_hosts(self) -> Path:
        """known_hosts file with exactly this host's keys."""
        return self.folder / "known_hosts"

    @classmethod
    @abc.abstractmethod
    def place(
        cls, name: str, release: str, *, taken: list[Machine], owner: int | None, disk_mib: int | None
    ) -> Machine:
        """Return a new host with an address of its own; nothing of it is made yet.

        Args:
            name: its name.
            release: key of ``rootfs.RELEASES``.
            taken: the hosts there are.
            owner: see the class.
            disk_mib: size of its disk; the driver's default when None.

        Raises:
            LabError: no address is left.
        """

    @classmethod
    @abc.abstractmethod
    def from_state(cls, state: dict[str, Any]) -> Machine:
        """Return a host that another process made, from its state file."""

    @abc.abstractmethod
    def create(self) -> None:
        """Make the host's keys and disk; the folder is there and empty."""

    @abc.abstractmethod
    def start(self) -> None:
        """Boot the host from its disk and wait until SSH answers."""

    @abc.abstractmethod
    def kill(self) -> None:
        """Cut the power: every process of the host is gone at once, its disk stays."""

    @abc.abstractmethod
    def release_resources(self) -> None:
        """Remove what a stopped host still holds outside of its folder: network, mounts."""

    @property
    @abc.abstractmethod
    def running(self) -> bool:
        """Whether the host is powered on."""

    def pretend_cards(self, cards: Sequence[str], *, nvswitches: int = 0, driver: str | None = None) -> None:
        """Show NVIDIA cards on the host's PCI bus that are not there, in place of those it had; see ``pci.py``.

        Args:
            cards: PCI device ids, such as ``2684``.
            nvswitches: NVSwitch bridges.
            driver: kernel driver they are bound to; none when None.

        Raises:
            LabError: this kind of host cannot have them.
        """
        del cards, nvswitches, driver
        raise LabError(f"{self.name}: only nspawn hosts can have pretended cards, not {self.driver} hosts")

    def down(self) -> None:
        """Remove the host and everything of it."""
        self.kill()
        self.release_resources()
        shutil.rmtree(self.folder, ignore_errors=True)

    def reboot(self) -> None:
        """Restart the host the orderly way and wait until SSH answers again."""
        before = self.ssh("cat /proc/sys/kernel/random/boot_id; systemctl show -P UserspaceTimestampMonotonic").stdout
        self.ssh("systemctl reboot", check=False)
        self._wait_until(lambda: self._boot_stamp() not in (None, before), "come back after a reboot")

    def ssh(self, command: str, *, check: bool = True, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Run a shell command as root.

        Args:
            command: for ``/bin/sh``.
            check: raise when it fails.
            timeout: seconds after which it is given up.

        Raises:
            LabError: it exited non-zero and ``check`` is set.
            subprocess.TimeoutExpired: it took longer than ``timeout``.
        """
        result = subprocess.run(
            [*self.ssh_command(), f"sudo -n /bin/sh -c {shlex.quote(command)}"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if check and result.returncode:
            raise LabError(f"{self.name}: {command}: exit code {result.returncode}\n{result.stdout}{result.stderr}")
        return result

    def ssh_command(self, *options: str) -> list[str]:
        """Return the ssh command line that opens a session on the host."""
        return [
            *("ssh", "-F", "none", "-i", str(self.key), "-p", str(self.port), "-o", "BatchMode=yes"),
            *("-o", f"UserKnownHostsFile={self.known_hosts}", "-o", "StrictHostKeyChecking=yes"),
            *("-o", "ConnectTimeout=5", "-o", "LogLevel=ERROR", *options, f"{self.user}@{self.address}"),
        ]

    def data(self) -> dict[str, Any]:
        """Return the host's connection data for a pyinfra inventory."""
        return {
            "ssh_hostname": self.address,
            "ssh_port": self.port,
            "ssh_user": self.user,
            "ssh_key": str(self.key),
            "ssh_known_hosts_file": str(self.known_hosts),
            "ssh_strict_host_key_checking": "yes",
            "_sudo": True,
        }

    def make_keys(self) -> None:
        """Make the key that opens the host, and the host's own keys, known before it first boots."""
        for path in (self.key, self.folder / "ssh_host_ed25519_key", self.folder / "ssh_host_ecdsa_key"):
            kind = "ecdsa" if "ecdsa" in path.name else "ed25519"
            run(["ssh-keygen", "-q", "-t", kind, "-N", "", "-C", self.name, "-f", str(path)])
        place = self.address if self.port == 22 else f"[{self.address}]:{self.port}"
        public = [path.read_text().split()[:2] for path in sorted(self.folder.glob("ssh_host_*_key.pub"))]
        self.known_hosts.write_text("".join(f"{place} {' '.join(key)}\n" for key in public))

    def state(self) -> dict[str, Any]:
        """Return what another process needs to know of the host, as JSON can hold it."""
        return {
            "driver": self.driver,
            "name": self.name,
            "release": self.release,
            "address": self.address,
            "port": self.port,
            "owner": self.owner,
            "owner_started": self.owner_started,
        }

    def save(self) -> None:
        """Write the state file, whole or not at all."""
        new = self.folder / "state.new"
        new.write_text(json.dumps(self.state(), indent=1))
        new.replace(self.folder / "state.json")

    @property
    def orphaned(self) -> bool:
        """Whether the process that owned the host is gone."""
        return self.owner is not None and started(self.owner) != self.owner_started

    def wait_for_ssh(self, seconds: float = 30) -> None:
        """Wait until a login works.

        Raises:
            LabError: it does not within that time; the message holds the end of the host's console.
        """
        # Real logins, not a look at the port: OpenSSH 9.8 and later shut out who connects and does not log in.
        self._wait_until(lambda: self.ssh("true", check=False, timeout=30).returncode == 0, "let one log in", seconds)

    def _boot_stamp(self) -> str | None:
        try:
            result = self.ssh(
                "cat /proc/sys/kernel/random/boot_id; systemctl show -P UserspaceTimestampMonotonic",
                check=False,
                timeout=10,
            )
        except subprocess.TimeoutExpired:
            return None
        return result.stdout if result.returncode == 0 else None

    def _wait_until(self, condition: Any, what: str, seconds: float = 90) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            self._give_up(deadline, what)

    def _give_up(self, deadline: float, what: str) -> None:
        if not self.running:
            raise LabError(f"{self.name}: ended instead of starting; the end of its console:\n{self.console()}")
        if time.monotonic() > deadline:
            raise LabError(f"{self.name}: did not {what} in time; the end of its console:\n{self.console()}")
        time.sleep(0.03)

    def console(self, lines: int = 15) -> str:
        """Return the last lines the host printed while booting."""
        log = self.folder / "console.log"
        return "\n".join(log.read_text(errors="replace").splitlines()[-lines:]) if log.exists() else ""


def started(pid: int | None) -> int | None:
    """Return when a process started, in the kernel's clock ticks, None if there is none: pids are used again."""
    try:
        # The name, in parentheses, may hold anything; the start time is the 20th field after it.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else int(fields[19])


def run(command: list[str]) -> str:
    """Run a command of this machine and return its output.

    Raises:
        LabError: it failed; the message holds what it said.
    """
    result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if result.returncode:
        raise LabError(f"{' '.join(command)}: exit code {result.returncode}: {result.stderr.strip()}")
    return result.stdout


@contextmanager
def lab_lock() -> Iterator[None]:
    """Hold the lock under which addresses are given out and hosts are listed."""
    with locked(HOSTS / "lock"):
        yield


def require(tools: Mapping[str, str]) -> None:
    """Check that this machine can have test hosts.

    Args:
        tools: program -> the Debian package that brings it.

    Raises:
        LabError: not root, or programs are missing.
    """
    if os.geteuid() != 0:
        raise LabError("test hosts need root: namespaces, mounts and a bridge are made for them")
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    missing = {package for tool, package in tools.items() if not shutil.which(tool, path=path)}
    if missing:
        raise LabError(f"programs are missing: apt-get install {' '.join(sorted(missing))}")
