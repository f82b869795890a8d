"""Installation of packages from lists that are fresh when, and only when, something is to be installed."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence

from pyinfra import host
from pyinfra.api import operation

from gpurack.facts.packages import InstalledVersions
from gpurack.versions import upstream_major

APT_GET = "DEBIAN_FRONTEND=noninteractive apt-get -y -o DPkg::Lock::Timeout=300"
KEEP_CONFIG = '-o Dpkg::Options::="--force-confdef" -o Dpkg::Options::="--force-confold"'


@operation()
def installed(packages: Sequence[str], least_major: Mapping[str, int] | None = None) -> Generator[str, None, None]:
    """Install packages that are missing, or whose upstream major version is too low.

    The package lists are fetched right before an installation: a run that was cut after a repository was added, or
    lists too old for the mirror, cannot make it fail. Waits up to 5 minutes for another apt to finish.

    + packages: names of packages
    + least_major: lowest upstream major version, for packages where an older one is something else
    """
    least = least_major or {}
    versions = host.get_fact(InstalledVersions, packages=tuple(packages))
    missing = [
        package
        for package in packages
        if package not in versions or upstream_major(versions[package]) < least.get(package, 0)
    ]
    if not missing:
        host.noop(f"packages {', '.join(packages)} are installed")
        return
    yield f"{APT_GET} update"
    yield f"{APT_GET} {KEEP_CONFIG} install --no-install-recommends {' '.join(missing)}"
