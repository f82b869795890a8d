"""Files that are changed under guard, see :mod:`gpurack.operations.guarded`."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import dataclass, field

from pyinfra.api.facts import FactBase

STATE_DIRECTORY = "/var/lib/gpurack/guard"


@dataclass
class GuardState:
    """What is on the host.

    Attributes:
        pending: an earlier change is in place that nobody has confirmed.
        sha256: checksum of every file that exists.
        mode: permissions of every file that exists, in octal such as ``644``.
    """

    pending: bool = False
    sha256: dict[str, str] = field(default_factory=dict)
    mode: dict[str, str] = field(default_factory=dict)


class GuardedFiles(FactBase[GuardState]):
    """Returns the :class:`GuardState` of one guarded change."""

    default = GuardState

    def command(self, identity: str, paths: list[str]) -> str:
        """Print whether a change is pending, then checksums and modes."""
        files = shlex.join(paths)
        return (
            f"test ! -e {shlex.quote(f'{STATE_DIRECTORY}/{identity}/pending')} || echo pending; "
            f"sha256sum -- {files} 2>/dev/null; stat -c 'mode %a %n' -- {files} 2>/dev/null; true"
        )

    def process(self, output: Iterable[str]) -> GuardState:
        """Parse ``sha256sum`` and ``stat`` lines."""
        state = GuardState()
        for line in output:
            if line == "pending":
                state.pending = True
            elif line.startswith("mode "):
                _, mode, path = line.split(" ", 2)
                state.mode[path] = mode
            else:
                checksum, path = line.split("  ", 1)
                state.sha256[path] = checksum
        return state
