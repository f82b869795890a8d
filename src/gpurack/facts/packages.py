"""State of the package manager of a Debian or Ubuntu host."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from pyinfra.api.facts import FactBase

UPDATE_STAMP = "/var/lib/apt/periodic/update-success-stamp"


@dataclass
class PackageState:
    """What the package manager says.

    Attributes:
        installed: version of each asked for package that is installed and configured.
        interrupted: an installation was cut off; ``dpkg --configure -a`` must finish it first.
        lists_stale: the package lists are missing, or older than a source or than they may be.
    """

    installed: dict[str, str] = field(default_factory=dict)
    interrupted: bool = False
    lists_stale: bool = False


class Packages(FactBase[PackageState]):
    """Returns the :class:`PackageState` for some packages, in one round trip."""

    default = PackageState

    def command(self, packages: Sequence[str], max_age_minutes: int) -> str:
        """Print installed packages, and what is wrong with dpkg's state and apt's lists."""
        return (
            "dpkg-query -W -f '${db:Status-Abbrev} ${Package} ${Version}\\n' "
            f"{shlex.join(packages)} 2>/dev/null; "
            "{ ls /var/lib/dpkg/updates; dpkg --audit; } | grep -q . && echo interrupted; "
            f'[ -n "$(find {UPDATE_STAMP} -mmin -{max_age_minutes} 2>/dev/null)" ] && '
            "ls /var/lib/apt/lists/*Release >/dev/null 2>&1 && "
            f'[ -z "$(find /etc/apt/sources.list /etc/apt/sources.list.d -newer {UPDATE_STAMP} 2>/dev/null)" ] || '
            "echo stale"
        )

    def process(self, output: Iterable[str]) -> PackageState:
        """Parse ``ii  name version`` lines (held packages, ``hi``, are installed too) and the two marks."""
        state = PackageState()
        for line in output:
            words = line.split()
            if words == ["interrupted"]:
                state.interrupted = True
            elif words == ["stale"]:
                state.lists_stale = True
            elif len(words) == 3 and words[0] in {"ii", "hi"}:
                state.installed[words[1]] = words[2]
        return state
