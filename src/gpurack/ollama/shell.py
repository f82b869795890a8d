"""Scripts on a host of a run whose output is followed while they run; pyinfra hands it over only at their end."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

from pyinfra.api.arguments import CONNECTOR_ARGUMENT_KEYS
from pyinfra.api.command import StringCommand
from pyinfra.api.host import Host
from pyinfra.api.state import State
from pyinfra.connectors.util import make_unix_command_for_host

from gpurack.ollama.api import LostError

PIECE = 1 << 20


@dataclass
class RemoteProcess:
    """A script at work on a host."""

    stdin: Any
    stdout: Any
    stderr: Any

    def lines(self) -> Iterator[str]:
        """Yield its output as it comes."""
        for line in self.stdout:
            yield str(line)

    def finish(self) -> tuple[int, str]:
        """Return its exit status and its errors.

        Raises:
            LostError: it has none: the connection was lost.
        """
        try:
            raw = self.stderr.read()
            status = self.stdout.channel.recv_exit_status()
        except Exception as error:  # whatever the connection broke with
            raise LostError(f"the connection to the host is lost: {error}") from error
        if status < 0:
            raise LostError("the connection to the host is lost")
        return status, raw.decode(errors="replace") if isinstance(raw, bytes) else str(raw)


class HostShell:
    """Runs scripts as an operation would: with its sudo, its password, over its connection."""

    def __init__(self, state: State, host: Host) -> None:
        """Take over what the operation at work was told."""
        self._state, self._host = state, host
        given = cast("dict[str, Any]", host.current_op_global_arguments or {})
        keys = set(CONNECTOR_ARGUMENT_KEYS) - {"_timeout", "_get_pty", "_stdin", "_success_exit_codes"}
        self._arguments = {key: value for key, value in given.items() if key in keys}

    def start(self, script: str) -> RemoteProcess:
        """Start a script without input."""
        process = self._start(script)
        process.stdin.close()
        return process

    def feed(self, script: str, source: BinaryIO, sent: Any) -> tuple[int, str]:
        """Run a script whose input is the rest of a file; return its exit status and errors.

        Args:
            script: reads standard input.
            source: open file.
            sent: called with the number of bytes of each piece that was sent.
        """
        process = self._start(script)
        try:
            while piece := source.read(PIECE):
                process.stdin.write(piece)
                sent(len(piece))
            process.stdin.close()
        except OSError as error:
            # The script has ended, on a full disk most likely: what it said is more use than that.
            status, errors = process.finish()
            return status or 1, errors or str(error)
        return process.finish()

    def _start(self, script: str) -> RemoteProcess:
        command = make_unix_command_for_host(self._state, self._host, StringCommand(script), **self._arguments)
        client = getattr(self._host.connector, "client", None)
        if client is None:
            raise LostError("models are managed over SSH; this host has another connector")
        return RemoteProcess(*client.exec_command(command.get_raw_value()))
