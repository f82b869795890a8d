"""What can be said of a file with secrets without reading it out."""

from __future__ import annotations

from dataclasses import dataclass

from pyinfra.api import FactBase, QuoteString, StringCommand


@dataclass(frozen=True)
class Sealed:
    """A file as it is on the host, its content as a checksum.

    Attributes:
        sha256: of the content, in hexadecimal.
        owner: ``user:group``.
        mode: octal, such as ``600``.
    """

    sha256: str
    owner: str
    mode: str


class SealedFile(FactBase[Sealed | None]):
    """Return checksum, owner and mode of a regular file, or None where there is none (a link is none)."""

    def command(self, path: str) -> StringCommand:
        """Return the command that prints owner, mode and checksum."""
        quoted = QuoteString(path)
        return StringCommand(
            *("if", "test", "-f", quoted, "-a", "!", "-L", quoted, ";", "then"),
            *("stat", "-c", "'%U:%G %a'", quoted, "&&", "sha256sum", "<", quoted, "; fi"),
        )

    def process(self, output: list[str]) -> Sealed | None:
        """Parse the two lines."""
        if len(output) != 2:
            return None
        owner, mode = output[0].split(" ")
        return Sealed(output[1].split(" ", 1)[0], owner, mode)

    @staticmethod
    def default() -> None:
        """Return the value for a file that is not there."""
        return
