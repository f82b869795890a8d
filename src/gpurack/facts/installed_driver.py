"""Version of the NVIDIA driver's libraries that are installed."""

from __future__ import annotations

from collections.abc import Iterable

from pyinfra.api import FactBase

from gpurack.gpu.driver_version import upstream


class InstalledDriver(FactBase[str]):
    """Returns the version of the package that brings libcuda, or of the loaded module; empty without either."""

    default = str

    def command(self) -> str:
        """Print package versions, then the module's: a library counts more, it is what the next boot runs with."""
        return (
            "dpkg-query -W -f '${db:Status-Abbrev} ${Version}\\n' libcuda1 'libnvidia-compute-*' 2>/dev/null "
            "| sed -n 's/^[hi]i  *//p'; cat /sys/module/nvidia/version 2>/dev/null; true"
        )

    def process(self, output: Iterable[str]) -> str:
        """Return the first line that is a driver's version."""
        return next((version for line in output if (version := upstream(line.strip()))), "")
