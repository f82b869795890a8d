"""Known faults in pyinfra's log."""

from __future__ import annotations

import logging

import pytest

from gpurack.hints import FAULTS, Faults, fault_in

# What the programs print, copied from hosts in that state.
SEEN = {
    "let nobody in": "with the new sshd settings a fresh connection failed (Authentication error (username=admin) "
    "(Authentication failed.)): they are taken back, by the host itself within 60 s if need be",
    "neither this user nor this key": "Authentication error (username=admin) (Authentication failed.)",
    "is not the one in known_hosts": "SSH host key error (Host key for 10.199.0.2 does not match.)",
    "is not in known_hosts": "SSH error (StrictPolicy: No host key for 10.199.0.2 found in known_hosts)",
    "no SSH server answers": "Could not connect ([Errno None] Unable to connect to port 22 on 10.199.0.2)",
    "closed the connection at once": "Could not connect ([Errno 104] Connection reset by peer)",
    "cannot be reached": "Could not connect (timed out)",
    "has no address": "Could not resolve hostname ([Errno -2] Name or service not known)",
    "sudo asks for a password": "sudo: a password is required",
    "holds the package manager's lock": "E: Could not get lock /var/lib/dpkg/lock-frontend. It is held by process 711",
    "the disk is full": "cp: error writing '/etc/x': No space left on device",
    "cannot resolve its package mirror": "W: Failed to fetch http://deb.debian.org/debian/dists/trixie/InRelease  "
    "Temporary failure resolving 'deb.debian.org'",
    "no route to its package mirror": "E: Failed to fetch http://x.example/x  Unable to connect to x.example",
    "lacks a GPU": "Error response from daemon: CDI device injection failed: unresolvable CDI devices nvidia.com/gpu=5",
    "how to give GPUs": 'Error response from daemon: could not select device driver "cdi" with capabilities: []',
    "was cut off": "E: dpkg was interrupted, you must manually run 'dpkg --configure -a' to correct the problem.",
    "connection was lost": "Command socket/SSH error: SSHException: SSH session not active",
}


@pytest.mark.parametrize("cause", SEEN)
def test_fault_is_recognised(cause: str) -> None:
    fault = fault_in(SEEN[cause])
    assert fault is not None
    assert cause in fault.cause


def test_ordinary_output_is_not_a_fault() -> None:
    assert fault_in("Setting up chrony (4.6.1-3) ...") is None
    assert all(fault.cure for fault in FAULTS)


@pytest.fixture
def faults() -> Faults:
    return Faults()


def log(faults: Faults, message: str, level: int = logging.ERROR) -> None:
    faults.emit(logging.LogRecord("pyinfra", level, __file__, 1, message, None, None))


def test_line_names_host_step_cause_and_cure(faults: Faults, capsys: pytest.CaptureFixture[str]) -> None:
    log(faults, "\x1b[34m--> Starting operation:\x1b[0m \x1b[1mBase | Install packages\x1b[0m ", logging.INFO)
    log(faults, "[gpu1]  E: Could not get lock /var/lib/dpkg/lock-frontend.")
    log(faults, "[gpu1]  E: Unable to do something after that")
    log(faults, "[gpu1]  \x1b[31mError: \x1b[0mexecuted 0 commands")
    log(faults, "--> Disconnecting from hosts...", logging.INFO)
    printed = capsys.readouterr().err
    [line] = [line.strip() for line in printed.splitlines() if "gpu1" in line]
    assert line.startswith("gpu1: Base | Install packages: another process holds the package manager's lock")
    assert "run again" in line


def test_warnings_beside_what_matters_are_left_out(faults: Faults, capsys: pytest.CaptureFixture[str]) -> None:
    log(faults, "--> Starting operation: Frobnicate", logging.INFO)
    log(faults, "[gpu1]  what matters")
    log(faults, "[gpu1]  sudo: unable to resolve host gpu1: Name or service not known")
    log(faults, "[gpu1]  Error: executed 0 commands")
    faults.show()
    assert "gpu1: Frobnicate: what matters" in capsys.readouterr().err


def test_unknown_fault_is_listed_with_the_last_line_of_its_command(
    faults: Faults, capsys: pytest.CaptureFixture[str]
) -> None:
    log(faults, "--> Starting operation: Frobnicate", logging.INFO)
    log(faults, "[gpu1]  something odd")
    log(faults, "[gpu1]  Error: executed 0 commands")
    faults.show()
    faults.show()
    assert capsys.readouterr().err.count("gpu1: Frobnicate: something odd") == 1


def test_each_host_is_listed_once_with_what_failed_first(faults: Faults, capsys: pytest.CaptureFixture[str]) -> None:
    log(faults, "[gpu2] Could not connect (timed out)")
    log(faults, "--> Starting operation: X", logging.INFO)
    log(faults, "[gpu1]  Success", logging.INFO)
    log(faults, "[gpu1]  ignored trouble")
    faults.show()
    printed = capsys.readouterr().err
    assert "gpu2: connect: the host cannot be reached" in printed
    assert "gpu1" not in printed
