"""Many commands in one shell: what takes most of the time of a command over SSH is done once a connection.

Of the 7.4 ms that ``sudo -H -n sh -c true`` takes on a host one hop away, a channel and sudo with its PAM session are
6.8 ms. A run asks a host hundreds of such questions. Here a shell is opened once, with sudo where the commands have
it, and each command is a child of it, ``sh -c`` as before. Nothing else changes:

- Every command is its own process with its own environment, folder and exit status, and reads from /dev/null.
- sudo would have logged every command; the shell logs them in the same place (authpriv) through ``logger``.
- Commands with input, a terminal, another user or a password of sudo's go the ordinary way, and so does a command that
  comes while the shell is at work.
- A shell that cannot be opened ends the command with what sudo said and its exit status; one that ends in the middle of
  a command is an error, never a success. A command that is given up (time-out) keeps its shell busy; those after it go
  the ordinary way.

:class:`Session` stands in for a :class:`paramiko.Channel`, so that whoever uses paramiko's client need not know.
"""

from __future__ import annotations

import secrets
import shlex
from collections.abc import Callable, Iterator
from threading import Lock
from typing import Any

from paramiko import Channel, SSHException

CHUNK = 65536

# Standard output of `sh` is kept on 4, so that what is written to 3 goes to the logger.
_LOGGED = (
    "exec 4>&1; if command -v logger >/dev/null; then sh 3>&1 >&4 4>&- | logger -t gpurack -p authpriv.notice; "
    "else sh 3>/dev/null; fi"
)
STARTS = {
    "sudo -H -n sh -c ": f"sudo -H -n sh -c {shlex.quote(_LOGGED)}",
    "sh -c ": "sh 3>/dev/null",
}
"""How pyinfra begins a command -> what opens the shell that such commands can share."""

# With the logger gone, writing to it must not end the shell; what the shell starts gets the signal's default back.
_FUNCTION = (
    "g() {{ trap '' PIPE; "
    '{{ printf \'%s : COMMAND=%s\\n\' "$SUDO_USER" "${{2-$1}}" >&3; }} 2>/dev/null; trap - PIPE; '
    'sh -c "$1" </dev/null 3>&-; '
    "printf '\\036%s %d\\n' {mark} $?; printf '\\036%s\\n' {mark} >&2; }}\n"
)


def split(command: str) -> tuple[str, str] | None:
    """Return the beginning of a command (a key of :data:`STARTS`) and the script in it; None for any other command.

    Args:
        command: as pyinfra hands it to SSH, such as ``sudo -H -n sh -c 'echo hello'``.
    """
    for start in STARTS:
        if command.startswith(start):
            word = command[len(start) :]
            script = word[1:-1].replace("'\"'\"'", "'") if word.startswith("'") else word
            return (start, script) if shlex.quote(script) == word else None
    return None


class Shell:
    """A shell on a host that runs one command after the other."""

    def __init__(self, channel: Channel, command: str) -> None:
        """Start it.

        Args:
            channel: a fresh session.
            command: what opens the shell, a value of :data:`STARTS`.
        """
        self.channel = channel
        token = secrets.token_hex(16)
        self.mark = b"\x1e" + token.encode()
        """Ends the output of a command, which never gets to see it. Its first byte is rare: what may be the beginning
        of the mark is held back until more has come."""
        self.free = Lock()
        channel.exec_command(command)
        channel.sendall(_FUNCTION.format(mark=token).encode())

    @property
    def usable(self) -> bool:
        """Whether it is still there."""
        return not (self.channel.closed or self.channel.eof_received or self.channel.exit_status_ready())

    def send(self, script: str) -> None:
        """Run a script; its output is read with :class:`Output`."""
        # A line of the log each: what is logged has no line breaks.
        logged = f" {shlex.quote(' '.join(script.split()))}" if "\n" in script else ""
        self.channel.sendall(f"g {shlex.quote(script)}{logged}\n".encode())


class Output:
    """One stream of a command's output, up to the shell's mark: the file object paramiko would return."""

    def __init__(self, session: Session, receive: Callable[[int], bytes], mark: bytes) -> None:
        """Describe the stream.

        Args:
            session: whose output it is.
            receive: ``recv`` of the shell's channel, or ``recv_stderr``.
            mark: the shell's.
        """
        self.channel = session
        self._receive = receive
        self._mark = mark
        self._buffer = b""
        self.ended = False
        self.marked = False
        """Whether the stream ended with the mark, and not with the shell."""
        self.trailer = b""
        """What the shell wrote behind the mark: the exit status, on standard output."""

    def chunks(self) -> Iterator[bytes]:
        """Yield the output as it comes, until it ends."""
        while not self.ended:
            if data := self._next():
                yield data

    def _next(self) -> bytes:
        received = self._receive(CHUNK)
        self._buffer += received
        place = self._buffer.find(self._mark)
        if place >= 0 and (stop := self._buffer.find(b"\n", place + len(self._mark))) >= 0:
            self.ended = self.marked = True
            self.trailer = self._buffer[place + len(self._mark) : stop]
            return self._buffer[:place]
        if not received:
            self.ended = True
            return self._buffer
        keep = _overlap(self._buffer, self._mark) if place < 0 else len(self._buffer) - place
        data, self._buffer = self._buffer[: len(self._buffer) - keep], self._buffer[len(self._buffer) - keep :]
        return data

    def __iter__(self) -> Iterator[str]:
        """Yield lines of text with their line ends."""
        rest = b""
        for chunk in self.chunks():
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                yield line.decode(errors="replace") + "\n"
        if rest:
            yield rest.decode(errors="replace")

    def read(self) -> bytes:
        """Return all of the output."""
        return b"".join(self.chunks())

    def close(self) -> None:
        """Do nothing: the stream is the shell's."""


def _overlap(text: bytes, end: bytes) -> int:
    """Return the length of the longest end of ``text`` with which ``end`` begins."""
    return next((n for n in range(min(len(text), len(end)), 0, -1) if end.startswith(text[-n:])), 0)


class Input:
    """Standard input of a command: that there is none is known when it is closed."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._file: Any = None

    def write(self, data: bytes | str) -> None:
        """Give the command input, for which it gets a channel of its own."""
        if self._file is None:
            self._file = self._session.leave_shell()
        self._file.write(data)

    def flush(self) -> None:
        """Send what was written."""
        if self._file is not None:
            self._file.flush()

    def close(self) -> None:
        """End the input; without any, this is where the command starts."""
        if self._file is not None:
            self._file.close()
        else:
            self._session.start()


class Session:
    """A session of an SSH connection, as :meth:`paramiko.Transport.open_session` returns it.

    Everything but a command that a shell can take is passed on to a channel, opened when it is needed.
    """

    def __init__(self, open_channel: Callable[[], Channel], shell_for: Callable[[str], Shell | None]) -> None:
        """Open nothing yet.

        Args:
            open_channel: opens an ordinary session.
            shell_for: returns the shell for a beginning of commands, locked for this session; None if it is busy.
        """
        self._open_channel, self._shell_for = open_channel, shell_for
        self._channel: Channel | None = None
        self._timeout: float | None = None
        self._command = self._script = ""
        self._shell: Shell | None = None
        self._started = False
        self._stdout: Any = None
        self._stderr: Any = None

    @property
    def channel(self) -> Channel:
        """The ordinary channel."""
        if self._channel is None:
            self._channel = self._open_channel()
            self._channel.settimeout(self._timeout)
        return self._channel

    def __getattr__(self, name: str) -> Any:
        if self._shell is not None:
            raise AttributeError(f"{name}: a command in a shared shell has no channel of its own")
        return getattr(self.channel, name)

    def settimeout(self, timeout: float | None) -> None:
        """Set the time-out of reading and writing, in seconds."""
        self._timeout = timeout
        if self._channel is not None:
            self._channel.settimeout(timeout)

    def exec_command(self, command: str) -> None:
        """Run a command: at once over a channel, or in the shell as soon as its input is closed."""
        parts = split(command) if self._channel is None and self._timeout is None else None
        self._shell = self._shell_for(parts[0]) if parts else None
        if parts is None or self._shell is None:
            self.channel.exec_command(command)
            return
        self._command, self._script = command, parts[1]
        channel, mark = self._shell.channel, self._shell.mark
        self._stdout, self._stderr = Output(self, channel.recv, mark), Output(self, channel.recv_stderr, mark)

    def makefile_stdin(self, *arguments: Any) -> Any:
        """Return the command's standard input."""
        return self.channel.makefile_stdin(*arguments) if self._shell is None else Input(self)

    def makefile(self, *arguments: Any) -> Any:
        """Return the command's standard output."""
        return self.channel.makefile(*arguments) if self._shell is None else _Late(self, "_stdout")

    def makefile_stderr(self, *arguments: Any) -> Any:
        """Return the command's standard error."""
        return self.channel.makefile_stderr(*arguments) if self._shell is None else _Late(self, "_stderr")

    def start(self) -> None:
        """Let the shell run the command."""
        if self._shell is None or self._started:
            return
        try:
            self._shell.send(self._script)
        except OSError:  # the shell has just gone
            self.leave_shell().close()
        else:
            self._started = True

    def leave_shell(self) -> Any:
        """Run the command over a channel of its own after all; return its standard input.

        Raises:
            SSHException: the command is running already.
        """
        if self._started:
            raise SSHException("the input of this command is closed")
        if self._shell is not None:
            self._shell.free.release()
            self._shell = None
        self.channel.exec_command(self._command)
        self._stdout, self._stderr = self.channel.makefile("r"), self.channel.makefile_stderr("r")
        return self.channel.makefile_stdin("wb")

    def recv_exit_status(self) -> int:
        """Wait for the command to end and return its exit status.

        Raises:
            SSHException: it has none: the connection was lost, or somebody killed the command or its shell.
        """
        self.start()
        if self._shell is None:
            return _exit_status(self.channel)
        for stream in (self._stdout, self._stderr):
            stream.read()
        if not (self._stdout.marked and self._stderr.marked):
            # Of the shell; where it is not zero, sudo refused to open one. Zero is only the logger's.
            return _exit_status(self._shell.channel, least=1)
        if self._shell.free.locked():
            self._shell.free.release()
        return int(self._stdout.trailer)

    def close(self) -> None:
        """Close the channel, if there is one."""
        if self._channel is not None:
            self._channel.close()


def _exit_status(channel: Channel, least: int = 0) -> int:
    status = channel.recv_exit_status()  # -1 is paramiko's word for: none was sent
    if status < least:
        lost = not channel.get_transport().is_active()
        raise SSHException("the connection was lost" if lost else "the command, or its shell, was killed")
    return status


class _Late:
    """A stream of a session whose kind is decided when the input is closed or written to."""

    def __init__(self, session: Session, name: str) -> None:
        self.channel = session
        self._name = name

    def _file(self) -> Any:
        self.channel.start()  # who reads before the input is closed gives none
        return vars(self.channel)[self._name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._file())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file(), name)
