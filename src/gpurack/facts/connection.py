"""As whom, and on which port, gpurack is connected to a host."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pyinfra.api.facts import FactBase


@dataclass(frozen=True)
class ConnectionInfo:
    """The login a run depends on.

    Attributes:
        user: name of the user that logged in.
        groups: all groups of that user.
        port: port of the SSH server on the host itself, before any port forwarding; None when not connected by SSH.
    """

    user: str
    groups: frozenset[str]
    port: int | None


class Connection(FactBase[ConnectionInfo]):
    """Returns :class:`ConnectionInfo`. Must be read as the connecting user: ``_sudo=False``."""

    def command(self) -> str:
        """Print user, groups, and sshd's own description of the connection."""
        return 'id -un; id -Gn; echo "${SSH_CONNECTION:-}"'

    def process(self, output: Iterable[str]) -> ConnectionInfo:
        """Parse the three lines; the connection is client address and port, server address and port."""
        user, groups, *connection = output
        parts = connection[0].split() if connection else []
        return ConnectionInfo(user.strip(), frozenset(groups.split()), int(parts[3]) if len(parts) == 4 else None)
