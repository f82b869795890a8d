"""A text file with its owner and mode, in one round trip."""

from __future__ import annotations

from dataclasses import dataclass

from pyinfra.api import FactBase, QuoteString, StringCommand


@dataclass(frozen=True)
class Text:
    """A file as it is on the host: its text, ``user:group`` and octal mode such as ``644``."""

    content: str
    owner: str
    mode: str


class TextFile(FactBase[Text | None]):
    """Return the content, owner and mode of a regular file, or None where there is none."""

    def command(self, path: str) -> StringCommand:
        """Return the command that prints owner and mode, then the file."""
        quoted = QuoteString(path)
        return StringCommand(
            "if", "test", "-f", quoted, ";", "then", "stat", "-c", "'%U:%G %a'", quoted, "&&", "cat", quoted, "; fi"
        )

    def process(self, output: list[str]) -> Text | None:
        """Parse the output; the last line's newline is taken as given."""
        if not output:
            return None
        owner, mode = output[0].split(" ")
        return Text("".join(f"{line}\n" for line in output[1:]), owner, mode)

    @staticmethod
    def default() -> None:
        """Return the value for a file that is not there."""
        return
