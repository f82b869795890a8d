"""Commands in a shared shell end as they would end in a channel of their own; here without SSH, with a local shell."""

from __future__ import annotations

import shlex
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paramiko import SSHException

from gpurack.shared_shell import STARTS, Session, Shell, split

# What opens a shell as root, without sudo, and with a logger that keeps nothing.
OPEN = STARTS["sudo -H -n sh -c "].removeprefix("sudo -H -n ").replace("logger -t gpurack", "cat >/dev/null;:")


class LocalChannel:
    """What a paramiko channel does for a command, done by a process of this machine."""

    closed = False
    eof_received = False

    def exec_command(self, command: str) -> None:
        # Sockets, not pipes: where gevent has patched the standard library, reading a pipe waits for all of its data.
        self.out, out = socket.socketpair()
        self.err, err = socket.socketpair()
        with out, err:
            self.process = subprocess.Popen(["sh", "-c", command], stdin=subprocess.PIPE, stdout=out, stderr=err)

    def sendall(self, data: bytes) -> None:
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def recv(self, size: int) -> bytes:
        return self.out.recv(size)

    def recv_stderr(self, size: int) -> bytes:
        return self.err.recv(size)

    def exit_status_ready(self) -> bool:
        return self.process.poll() is not None

    def recv_exit_status(self) -> int:
        return max(self.process.wait(), -1)

    def get_transport(self) -> Any:
        return SimpleNamespace(is_active=lambda: True)

    def makefile_stdin(self, *_: Any) -> Any:
        return self.process.stdin

    def makefile(self, *_: Any) -> Any:
        return SimpleNamespace(read=self.out.makefile("rb").read, channel=self)

    def makefile_stderr(self, *_: Any) -> Any:
        return SimpleNamespace(read=self.err.makefile("rb").read, channel=self)

    def settimeout(self, timeout: float | None) -> None:
        assert timeout is None

    def end(self) -> None:
        self.process.kill()
        for file in (self.process.stdin, self.out, self.err):
            file.close()
        self.process.wait()


class Host:
    """One shell, and the channels opened beside it."""

    def __init__(self) -> None:
        self.shell = Shell(LocalChannel(), OPEN)
        self.opened: list[LocalChannel] = []

    def open_channel(self) -> LocalChannel:
        self.opened.append(LocalChannel())
        return self.opened[-1]

    def shell_for(self, _start: str) -> Shell | None:
        return self.shell if self.shell.free.acquire(blocking=False) else None

    def exec_command(self, script: str) -> tuple[Any, Any, Any]:
        session = Session(self.open_channel, self.shell_for)
        session.settimeout(None)
        session.exec_command(f"sh -c {shlex.quote(script)}")
        return session.makefile_stdin("wb"), session.makefile("r"), session.makefile_stderr("r")

    def run(self, script: str, given_input: bytes = b"") -> tuple[int, bytes, bytes]:
        stdin, stdout, stderr = self.exec_command(script)
        if given_input:
            stdin.write(given_input)
        stdin.close()
        with ThreadPoolExecutor(2) as readers:  # both at once, as pyinfra does
            said = tuple(readers.map(lambda stream: stream.read(), (stdout, stderr)))
        return stdout.channel.recv_exit_status(), *said


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    made = Host()
    yield made
    made.shell.channel.end()
    for channel in made.opened:
        channel.end()


def alone(script: str) -> tuple[int, bytes, bytes]:
    """Run a script as it would run in a channel of its own."""
    result = subprocess.run(["sh", "-c", script], stdin=subprocess.DEVNULL, capture_output=True, check=False)
    return result.returncode, result.stdout, result.stderr


@pytest.mark.parametrize(
    "script",
    [
        "true",
        "false",
        "exit 77",
        "echo hello",
        "printf 'no line end'",
        "printf '\\n\\n\\n'",
        "echo out; echo err >&2; exit 3",
        "printf err >&2",
        "echo 'it'\"'\"'s quoted' \"$HOME\"",
        "echo one\necho two",
        "cat; echo 'no input'",
        "seq 200000",
        "seq 200000 >&2",
        "cd /; export A=1; umask 0; set -e; false",
        "printf '\\303\\244\\377\\000x'",
        "no-such-command-at-all 2>/dev/null",
        "g() { echo mine; }; g",
        "echo $0 $#; exec 3>&- 2>/dev/null; echo end",
    ],
)
def test_a_command_ends_as_it_does_alone(host: Host, script: str) -> None:
    assert host.run(script) == alone(script)
    assert not host.opened, "it did not run in the shared shell"


def test_a_command_ended_by_a_signal_says_so(host: Host) -> None:
    code, _, err = host.run("kill -TERM $$; sleep 5")
    assert (code, err) == (128 + 15, b"Terminated\n")


def test_commands_leave_nothing_behind(host: Host) -> None:
    host.run("cd /; export LEFT=1; umask 0777; trap 'echo trapped' EXIT; alias ls=false")
    assert host.run("echo ${LEFT-nothing}; pwd; umask") == alone("echo ${LEFT-nothing}; pwd; umask")


@given(st.lists(st.tuples(st.binary(max_size=300), st.binary(max_size=100), st.integers(0, 255)), max_size=5))
def test_any_output_comes_through_unchanged(host: Host, commands: list[tuple[bytes, bytes, int]]) -> None:
    for out, err, code in commands:
        script = f"printf '{_octal(out)}'; printf '{_octal(err)}' >&2; exit {code}"
        assert host.run(script) == (code, out, err)


def _octal(data: bytes) -> str:
    return "".join(f"\\{byte:03o}" for byte in data)


def test_lines_come_as_they_are_printed(host: Host) -> None:
    stdin, stdout, _ = host.exec_command("echo first; sleep 20; echo second")
    stdin.close()
    lines = iter(stdout)
    assert next(lines) == "first\n"
    # The rest would take half a minute: the command is given up, as a time-out does it, and its shell stays busy.
    assert host.run("echo another way") == (0, b"another way\n", b"")
    assert len(host.opened) == 1
    host.shell.channel.end()
    host.shell = Shell(LocalChannel(), OPEN)


def test_a_logger_that_is_gone_is_no_loss() -> None:
    host = Host()
    host.shell.channel.end()
    host.shell = Shell(LocalChannel(), OPEN.replace("cat >/dev/null", "true"))
    for _ in range(3):
        assert host.run("echo heard") == (0, b"heard\n", b"")
    assert host.run("yes | head -n 1") == (0, b"y\n", b""), "a broken pipe still ends a command"
    assert not host.opened
    host.shell.channel.end()


def test_input_takes_the_ordinary_way(host: Host) -> None:
    before = len(host.opened)
    assert host.run("cat", b"some input") == (0, b"some input", b"")
    assert len(host.opened) == before + 1
    assert host.run("echo shared") == (0, b"shared\n", b"")
    assert len(host.opened) == before + 1


def test_output_may_be_read_with_the_input_left_open(host: Host) -> None:
    _, stdout, stderr = host.exec_command("echo started; cat")
    assert (stdout.read(), stderr.read(), stdout.channel.recv_exit_status()) == (b"started\n", b"", 0)


def test_exit_status_may_be_asked_without_reading(host: Host) -> None:
    _, stdout, _ = host.exec_command("echo unread; exit 4")
    assert stdout.channel.recv_exit_status() == 4


def test_a_shell_that_ends_ends_its_command_and_no_other() -> None:
    host = Host()
    with pytest.raises(SSHException, match="was killed"):
        host.run("echo so far; kill -KILL $PPID")
    host.shell.channel.process.wait()
    assert not host.shell.usable
    assert not host.shell.free.acquire(blocking=False), "it is not given to another command"
    host.shell.channel.end()


def test_a_shell_gone_before_the_command_costs_nothing() -> None:
    host = Host()
    host.shell.channel.end()

    def broken(_data: bytes) -> None:
        raise OSError("Socket is closed")

    host.shell.channel.sendall = broken  # type: ignore[method-assign]
    assert host.run("echo all the same") == (0, b"all the same\n", b"")
    host.opened[0].end()


@given(st.text())
def test_pyinfras_quoting_is_undone_exactly(script: str) -> None:
    for start in STARTS:
        assert split(start + shlex.quote(script)) == (start, script)


@pytest.mark.parametrize(
    "command",
    [
        "echo hello",
        "sudo -H -n -u postgres sh -c true",
        "sudo -H -A -k sh -c true",
        "env SUDO_ASKPASS=x sudo -H -A -k sh -c true",
        "sh -c 'one' 'two'",
        "sh -c one two",
        "sh -c $(reboot)",
        "sh -c 'a'; reboot",
        "bash -c true",
        "sh -c ",
    ],
)
def test_every_other_command_is_left_alone(command: str) -> None:
    assert split(command) is None
