"""Installed versions of named packages, without reading the whole package database."""

from __future__ import annotations

import shlex
from collections.abc import Iterable

from pyinfra.api import FactBase


class InstalledVersions(FactBase[dict[str, str]]):
    """Return the version of each named package that is installed (dpkg status ``installed``)."""

    default = dict

    def command(self, packages: Iterable[str]) -> str:
        """Return the dpkg query; packages dpkg does not know are no error."""
        names = " ".join(shlex.quote(package) for package in packages)
        return f"dpkg-query -W -f '${{Package}} ${{db:Status-Status}} ${{Version}}\\n' {names} 2>/dev/null || true"

    def process(self, output: list[str]) -> dict[str, str]:
        """Parse ``package status version`` lines."""
        rows = (line.split(" ") for line in output if line)
        return {package: version for package, status, version in rows if status == "installed"}
