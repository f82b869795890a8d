"""What a host has of a bundle's package repository."""

from __future__ import annotations

import shlex
from collections.abc import Iterable

from pyinfra.api.facts import FactBase


class FileSizes(FactBase[dict[str, int]]):
    """Return the size in bytes of every file below a directory, by path in it; empty without the directory."""

    default = dict

    def command(self, path: str) -> str:
        """Return the command that lists them."""
        quoted = shlex.quote(path)
        return f"if test -d {quoted}; then find {quoted} -type f -printf '%s %P\\n'; fi"

    def process(self, output: Iterable[str]) -> dict[str, int]:
        """Parse ``size path`` lines."""
        found = {}
        for line in output:
            size, _, path = line.strip().partition(" ")
            if size.isdecimal() and path:
                found[path] = int(size)
        return found
