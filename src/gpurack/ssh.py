"""SSH connections that answer at once, and that notice when the other end is gone.

paramiko leaves Nagle's algorithm on. A command is several small packets (open channel, execute, end of file), so each
waits for the delayed acknowledgement of the one before it: 42.5 ms for ``true`` on a host one hop away, 2.3 ms with
TCP_NODELAY, which OpenSSH's own client sets too.
"""

from __future__ import annotations

import socket
from typing import Any

from paramiko import Transport

KEEPALIVE_SECONDS = 15
"""Interval of SSH keep-alives: sent also while a long command is silent, so that firewalls keep the connection."""

LOST_AFTER_SECONDS = 60
"""A peer that has acknowledged nothing for this long is gone; without a limit a run would hang for ever."""


def transport(sock: Any, **options: Any) -> Transport:
    """Return a paramiko transport for pyinfra's SSH connector.

    Made for ``ssh_paramiko_connect_kwargs = {"transport_factory": transport}`` in pyinfra's host data.

    Args:
        sock: a connected socket, or a paramiko channel or proxy when the host is reached through another one.
        options: passed on to :class:`paramiko.Transport`.
    """
    if isinstance(sock, socket.socket):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux only
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, LOST_AFTER_SECONDS * 1000)
    connection = Transport(sock, **options)
    connection.set_keepalive(KEEPALIVE_SECONDS)
    return connection
