"""SSH connections that answer at once, and that notice when the other end is gone.

paramiko leaves Nagle's algorithm on. A command is several small packets (open channel, execute, end of file), so each
waits for the delayed acknowledgement of the one before it: 42.5 ms for ``true`` on a host one hop away, 2.3 ms with
TCP_NODELAY, which OpenSSH's own client sets too.
"""

from __future__ import annotations

import socket
from threading import Lock
from typing import Any

from paramiko import Channel, SSHException, Transport

from gpurack.shared_shell import STARTS, Session, Shell

KEEPALIVE_SECONDS = 15
"""Interval of SSH keep-alives: sent also while a long command is silent, so that firewalls keep the connection."""

LOST_AFTER_SECONDS = 60
"""A peer that has acknowledged nothing for this long is gone; without a limit a run would hang for ever."""


def transport(sock: Any, **options: Any) -> Transport:
    """Return a paramiko transport for pyinfra's SSH connector whose commands share a shell.

    Made for ``ssh_paramiko_connect_kwargs = {"transport_factory": transport}`` in pyinfra's host data.

    Args:
        sock: a connected socket, or a paramiko channel or proxy when the host is reached through another one.
        options: passed on to :class:`paramiko.Transport`.
    """
    return _prepared(SharingTransport, sock, options)


def plain_transport(sock: Any, **options: Any) -> Transport:
    """Return a transport like :func:`transport` that gives every command a channel, and a sudo, of its own."""
    return _prepared(Transport, sock, options)


def _prepared(kind: type[Transport], sock: Any, options: dict[str, Any]) -> Transport:
    if isinstance(sock, socket.socket):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux only
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, LOST_AFTER_SECONDS * 1000)
    connection = kind(sock, **options)
    connection.set_keepalive(KEEPALIVE_SECONDS)
    return connection


class SharingTransport(Transport):
    """A transport whose sessions run commands in shared shells where they can; see :mod:`gpurack.shared_shell`."""

    def __init__(self, sock: Any, **options: Any) -> None:
        super().__init__(sock, **options)
        self._shells: dict[str, Shell] = {}
        self._opening = Lock()

    def open_session(
        self, window_size: int | None = None, max_packet_size: int | None = None, timeout: float | None = None
    ) -> Channel:
        """Return a session that is opened when it is known what for."""

        def open_channel() -> Channel:
            return super(SharingTransport, self).open_session(window_size, max_packet_size, timeout)

        return Session(open_channel, self._shell_for)  # type: ignore[return-value]

    def _shell_for(self, start: str) -> Shell | None:
        """Return the shell for commands that begin like this, locked; None if it is busy or cannot be opened."""
        with self._opening:
            shell = self._shells.get(start)
            if shell is None or (not shell.usable and shell.free.acquire(blocking=False)):
                try:
                    shell = self._shells[start] = Shell(super().open_session(), STARTS[start])
                except (SSHException, OSError):  # no more sessions, or no connection: the ordinary way says which
                    return None
            return shell if shell.free.acquire(blocking=False) else None
