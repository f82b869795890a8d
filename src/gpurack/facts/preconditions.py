"""What must hold on a host before anything is changed on it, read in one round trip."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from pyinfra.api.facts import FactBase

Privilege = Literal["root", "sudo", "password", "none"]


@dataclass(frozen=True)
class Preconditions:
    """Who one is on a host, and what it runs.

    Attributes:
        privilege: ``root``; ``sudo`` without a password; ``password`` if sudo asks for one; ``none`` without sudo.
        os_id: ``ID`` of os-release, such as ``debian``.
        os_version: ``VERSION_ID`` of os-release, such as ``13``; empty on testing and unstable.
        os_name: ``PRETTY_NAME`` of os-release.
    """

    privilege: Privilege
    os_id: str
    os_version: str
    os_name: str


class HostPreconditions(FactBase[Preconditions]):
    """Returns :class:`Preconditions`. Meant to be read as the connecting user: ``_sudo=False``."""

    def command(self) -> str:
        """Print who can become root, then os-release."""
        return (
            'if [ "$(id -u)" = 0 ]; then echo root; '
            "elif ! command -v sudo >/dev/null; then echo none; "
            "elif sudo -n true 2>/dev/null; then echo sudo; else echo password; fi; "
            "cat /etc/os-release"
        )

    def process(self, output: Iterable[str]) -> Preconditions:
        """Parse the privilege in the first line and os-release's assignments after it."""
        privilege, *lines = output
        release = {}
        for line in lines:
            key, separator, value = line.partition("=")
            if separator and not key.startswith("#"):
                release[key.strip()] = value.strip().strip("\"'")
        return Preconditions(
            privilege.strip(),  # type: ignore[arg-type]
            release.get("ID", ""),
            release.get("VERSION_ID", ""),
            release.get("PRETTY_NAME", ""),
        )
