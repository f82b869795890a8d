"""A directory with its owner as numbers: those of a container's user need not be anybody on the host."""

from __future__ import annotations

from pyinfra.api import FactBase, QuoteString, StringCommand


class Folder(FactBase[tuple[str, str] | None]):
    """Return ``(uid:gid, octal mode)`` of a directory, or None where there is none."""

    def command(self, path: str) -> StringCommand:
        """Return the command that prints both."""
        quoted = QuoteString(path)
        return StringCommand("if", "test", "-d", quoted, ";", "then", "stat", "-c", "'%u:%g %a'", quoted, "; fi")

    def process(self, output: list[str]) -> tuple[str, str] | None:
        """Parse the line."""
        owner, _, mode = "".join(output).strip().partition(" ")
        return (owner, mode) if mode else None

    @staticmethod
    def default() -> None:
        """Return the value for a directory that is not there."""
        return
