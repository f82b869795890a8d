"""State of a Debian or Ubuntu host: its release, its package manager, what runs it."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import dataclass, field

from pyinfra.api.facts import FactBase

UPDATE_STAMP = "/var/lib/apt/periodic/update-success-stamp"


@dataclass(frozen=True)
class PlatformInfo:
    """What kind of machine a host is.

    Attributes:
        distribution: ``debian`` or ``ubuntu``.
        codename: release, such as ``trixie``.
        container: the kernel, and with it the clock, belongs to another host.
    """

    distribution: str
    codename: str
    container: bool


class Platform(FactBase[PlatformInfo]):
    """Returns :class:`PlatformInfo`."""

    def command(self) -> str:
        """Print os-release, and the kind of container if it is one."""
        return 'cat /etc/os-release; echo "CONTAINER=$(systemd-detect-virt --container || true)"'

    def process(self, output: Iterable[str]) -> PlatformInfo:
        """Parse assignments."""
        values = {key: value.strip("\"'") for key, _, value in (line.partition("=") for line in output)}
        return PlatformInfo(
            distribution=values.get("ID", ""),
            codename=values.get("VERSION_CODENAME", ""),
            container=values.get("CONTAINER", "none") not in {"none", ""},
        )


@dataclass
class PackageState:
    """What the package manager says.

    Attributes:
        installed: the asked for packages that are installed and configured.
        interrupted: an installation was cut off; ``dpkg --configure -a`` must finish it first.
        lists_stale: the package lists are missing, or older than a source or than they may be.
    """

    installed: set[str] = field(default_factory=set)
    interrupted: bool = False
    lists_stale: bool = False


class Packages(FactBase[PackageState]):
    """Returns the :class:`PackageState` for some packages, in one round trip."""

    default = PackageState

    def command(self, packages: list[str], max_age_minutes: int) -> str:
        """Print installed packages, and what is wrong with dpkg's state and apt's lists."""
        return (
            f"dpkg-query -W -f '${{db:Status-Abbrev}} ${{Package}}\\n' {shlex.join(packages)} 2>/dev/null; "
            "{ ls /var/lib/dpkg/updates; dpkg --audit; } | grep -q . && echo interrupted; "
            f'[ -n "$(find {UPDATE_STAMP} -mmin -{max_age_minutes} 2>/dev/null)" ] && '
            "ls /var/lib/apt/lists/*Release >/dev/null 2>&1 && "
            f'[ -z "$(find /etc/apt/sources.list /etc/apt/sources.list.d -newer {UPDATE_STAMP} 2>/dev/null)" ] || '
            "echo stale"
        )

    def process(self, output: Iterable[str]) -> PackageState:
        """Parse ``ii  name`` lines (held packages, ``hi``, are installed too) and the two marks."""
        state = PackageState()
        for line in output:
            words = line.split()
            if words == ["interrupted"]:
                state.interrupted = True
            elif words == ["stale"]:
                state.lists_stale = True
            elif len(words) == 2 and words[0] in {"ii", "hi"}:
                state.installed.add(words[1])
        return state
