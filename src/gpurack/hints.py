"""Known faults, recognised in pyinfra's output: one line each with host, step, cause and cure.

pyinfra prints what the failed command said, somewhere in the scroll of a run over many hosts. :func:`watch` reads the
same log, and repeats at the end of the run what went wrong where, in words that say what to do. Unknown faults are
listed too, with the last line their command printed.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, field

import click
from pyinfra import logger

from gpurack import notices


@dataclass(frozen=True)
class Fault:
    """A fault of the field: how it shows, and what to do about it."""

    pattern: re.Pattern[str]
    cause: str
    cure: str


def _fault(pattern: str, cause: str, cure: str) -> Fault:
    return Fault(re.compile(pattern, re.IGNORECASE), cause, cure)


# First match wins. Each text is what OpenSSH, paramiko, sudo, apt, dpkg or the kernel prints in the C locale.
FAULTS = (
    _fault(
        r"a fresh connection failed",
        "the new settings let nobody in; the host takes them back by itself",
        "correct them and run again",
    ),
    _fault(
        r"Authentication error",
        "the host accepts neither this user nor this key",
        "check ssh_user and ssh_key in the inventory; put the public key into that user's ~/.ssh/authorized_keys",
    ),
    _fault(
        r"Host key for (\S+) does not match",
        "the host's SSH key is not the one in known_hosts: reinstalled, or somebody in between",
        "compare `ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub` on its console; if right, "
        "`ssh-keygen -R HOST`, then add the new key",
    ),
    _fault(
        r"No host key for (\S+) found in known_hosts",
        "the host's SSH key is not in known_hosts",
        "compare `ssh-keyscan HOST | ssh-keygen -lf -` with its console, then add it to known_hosts",
    ),
    _fault(
        r"Could not resolve hostname",
        "the host's name has no address",
        "correct the name in the inventory, or set ssh_hostname to an address",
    ),
    _fault(
        r"Connection refused|Unable to connect to port",
        "no SSH server answers at that address and port",  # paramiko says the same of a host that is off
        "check that the host is on and its sshd runs, ssh_hostname and ssh_port, and firewalls between here and there",
    ),
    _fault(
        r"Connection reset by peer|Error reading SSH protocol banner",
        "the SSH server closed the connection at once: failed logins from here (PerSourcePenalties), or overload",
        "wait a minute and run again; `journalctl -u ssh` on the host tells why",
    ),
    _fault(
        r"Could not connect .*(timed out|timeout)|No route to host|Network is unreachable|Could not connect \(",
        "the host cannot be reached",
        "check that it is switched on, its address, and firewalls between here and there",
    ),
    _fault(
        r"sudo: a password is required|sudo: a terminal is required|sudo: .*askpass|sudo asks for a password",
        "sudo asks for a password",
        "run pyinfra with --same-sudo-password, or give the user a NOPASSWD rule in /etc/sudoers.d",
    ),
    _fault(
        r"is not in the sudoers file|may not run sudo",
        "the user may not use sudo",
        "log in as another user, or add this one to the group sudo",
    ),
    _fault(
        r"Could not get lock|Unable to acquire the dpkg frontend lock|Unable to lock directory",
        "another process holds the package manager's lock",
        "wait for it to end (`fuser -v /var/lib/dpkg/lock-frontend` names it), then run again",
    ),
    _fault(
        r"Bad return status for module build|DKMS did not build",
        "the driver's module does not compile with this kernel; the compiler's errors are above",
        "take another driver (nvidia_driver.version, source or flavour), or boot a kernel that it knows",
    ),
    _fault(
        r"dpkg was interrupted",
        "an earlier package installation was cut off",
        "run `dpkg --configure -a` on the host, then run again",
    ),
    _fault(
        r"No space left on device|You don't have enough free space|Disk quota exceeded",
        "the disk is full",
        "free space (`df -h`, `journalctl --vacuum-size=500M`, `apt-get clean`), then run again",
    ),
    _fault(
        r"Temporary failure resolving|Could not resolve '",
        "the host cannot resolve its package mirror's name",
        "check /etc/resolv.conf on the host, or set base.mirror (or base.apt_proxy) to one it reaches",
    ),
    _fault(
        r"(Unable|Could not|Cannot) (to )?(connect|initiate the connection) to \S+|Failed to fetch|"
        r"no longer has a Release file|does not have a Release file",
        "the host has no route to its package mirror",
        "check its default route and firewall, or set base.mirror (or base.apt_proxy) to one it reaches",
    ),
    _fault(
        r"unresolvable CDI devices",
        "the host's CDI specification lacks a GPU that a container asks for",
        "compare `nvidia-smi -L` with `nvidia-ctk cdi list`; `systemctl restart gpurack-cdi.service` makes it anew",
    ),
    _fault(
        r"could not select device driver",
        "Docker does not know how to give GPUs to containers",
        "apply the roles container_toolkit and docker to the host, then run again",
    ),
    _fault(
        r"Read-only file system",
        "the file system is read-only",
        "look for disk errors with `dmesg`, repair, and mount it writable again",
    ),
    _fault(
        r"Command socket/SSH error|Command timed out|SSH session not active",
        "the connection was lost in the middle of a command",
        "check the network and the host, then run again: a cut run is repaired by the next",
    ),
)

HARMLESS = re.compile(r"^(sudo: unable to resolve host|debconf: |W: |perl: warning|locale: |bash: warning: setlocale)")
"""What programs print beside what matters."""

ANSI = re.compile(r"\x1b\[[0-9;]*m")
HOST_LINE = re.compile(r"^\[(?P<host>[^\]]+)\]\s+(?:nested\s+)?(?P<text>.*)$", re.DOTALL)
STEP = re.compile(r"^--> Starting .*?operation: (?P<step>.*?)\s*$")


@dataclass
class Faults(logging.Handler):
    """Collects the faults of one run from pyinfra's log."""

    step: str = "connect"
    last_error: dict[str, str] = field(default_factory=dict)
    found: dict[str, str] = field(default_factory=dict)
    """The line to print for each host that failed: what failed first is the cause of the rest."""

    def __post_init__(self) -> None:
        logging.Handler.__init__(self, logging.INFO)

    __hash__ = logging.Handler.__hash__

    def emit(self, record: logging.LogRecord) -> None:
        """Read one line of pyinfra's log."""
        text = ANSI.sub("", record.getMessage())
        if text.startswith("-->"):
            self._header(text)
        elif record.levelno >= logging.WARNING and (match := HOST_LINE.match(text)):
            self._host_line(match["host"], match["text"].strip(), record.levelno)

    def _header(self, text: str) -> None:
        if match := STEP.match(text):
            self.step = match["step"]
            self.last_error.clear()
        elif text.startswith("--> Preparing"):
            self.step = "prepare"
        elif text.startswith("--> Disconnecting"):
            self.show()

    def _host_line(self, host: str, text: str, level: int) -> None:
        failed = text.startswith("Error") and level >= logging.ERROR
        if failed or self.step == "connect":
            known = fault_in(self.last_error.get(host, "") if failed else text)
            message = self.last_error.get(host) or text
            self.found.setdefault(host, line_for(host, self.step, known, message))
        elif level >= logging.ERROR and self._tells_more(text, self.last_error.get(host, "")):
            self.last_error[host] = text

    @staticmethod
    def _tells_more(text: str, before: str) -> bool:
        """Tell whether a line of a command's output says more about its fault: known faults do, then later lines."""
        if fault_in(text):
            return True
        return bool(text) and not HARMLESS.match(text) and not fault_in(before)

    def show(self) -> None:
        """Print what was found, and what is left to do, once."""
        if self.found:
            click.echo("\n--> What went wrong, and what to do:", err=True)
            for line in self.found.values():
                click.secho(f"    {line}", fg="red", err=True)
            self.found.clear()
        if left := notices.take():
            click.echo("\n--> Left to do:", err=True)
            for line in left:
                click.secho(f"    {line}", fg="yellow", err=True)


def fault_in(text: str) -> Fault | None:
    """Return the known fault that a line of output shows."""
    return next((fault for fault in FAULTS if fault.pattern.search(text)), None)


def line_for(host: str, step: str, fault: Fault | None, text: str) -> str:
    """Return the line printed for a host that failed."""
    if fault is None:
        return f"{host}: {step}: {text}"
    return f"{host}: {step}: {fault.cause} ({text}); {fault.cure.replace('HOST', host)}"


def watch() -> None:
    """Follow pyinfra's log from here on."""
    logger.addHandler(Faults())
