"""Which packages, from where, bring the engine and Compose v2 to a release."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from roles.docker.settings import DockerSettings

KEYRING = "/etc/apt/keyrings/docker.asc"


@dataclass(frozen=True)
class Packages:
    """Packages to install and what apt has to know first.

    Attributes:
        distribution: ``debian`` or ``ubuntu``.
        codename: the release they are for, such as ``trixie``.
        packages: names, in the order given to apt.
        least_major: lowest major version where an older one is something else.
        apt_files: files below ``/etc/apt`` to write first, each from the template of the same name.
        key_url: where the repository's signing key is, if it is not Debian's.
    """

    distribution: str
    codename: str
    packages: tuple[str, ...]
    least_major: Mapping[str, int] = field(default_factory=dict)
    apt_files: tuple[str, ...] = ()
    key_url: str | None = None


def choose(settings: DockerSettings, distribution: str, codename: str) -> Packages:
    """Return the packages for a release.

    Debian 12 has no Compose v2: the docker-compose of Debian 13 is taken, alone. It needs only a libc that Debian 12
    has, and works with Debian 12's engine.
    """
    if settings.source == "docker":
        return Packages(
            distribution,
            codename,
            ("docker-ce", "docker-ce-cli", "containerd.io", "docker-compose-plugin"),
            apt_files=("sources.list.d/docker.sources",),
            key_url=f"{settings.repository}/{distribution}/gpg",
        )
    if codename == "bookworm":
        online = ("preferences.d/gpurack-compose", "sources.list.d/gpurack-compose.sources")
        return Packages(
            distribution,
            codename,
            ("docker.io", "docker-compose"),
            least_major={"docker-compose": 2},
            apt_files=() if settings.bundle.path else online,  # a bundle has the one right docker-compose
        )
    if distribution == "ubuntu":
        return Packages(distribution, codename, ("docker.io", "docker-compose-v2"))
    return Packages(
        distribution,
        codename,
        ("docker.io", "docker-cli", "docker-compose"),
        least_major={"docker-compose": 2},
    )
