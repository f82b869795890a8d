"""What kind of machine a Debian or Ubuntu host is."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pyinfra.api.facts import FactBase


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
