"""Settings of the docker role."""

from __future__ import annotations

from ipaddress import IPv4Network
from pathlib import PurePosixPath
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from gpurack.bundle.settings import BundleSettings
from gpurack.settings import MirrorUrl, RoleSettings


def _data_root(value: str) -> str:
    path = PurePosixPath(value)
    if not path.is_absolute() or ".." in path.parts or str(path) == "/":
        raise ValueError("expected an absolute path such as /var/lib/docker, without ..")
    return str(path)


DataRoot = Annotated[str, AfterValidator(_data_root)]


class AddressPool(BaseModel):
    """Addresses out of which Docker takes the networks it creates."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    base: IPv4Network = Field(description="Network that is divided, such as 172.20.0.0/14")
    size: int = Field(ge=8, le=29, description="Prefix length of each network, such as 24")

    @model_validator(mode="after")
    def _divisible(self) -> AddressPool:
        if self.size < self.base.prefixlen:
            raise ValueError(f"a /{self.size} network does not fit into {self.base}")
        return self


class DockerSettings(RoleSettings):
    """Engine, Compose and the daemon's configuration."""

    bundle: BundleSettings = Field(BundleSettings(), description="Where packages come from without a network")
    source: Literal["debian", "docker"] = Field(
        "debian", description="Whose packages: the distribution's, or Docker's own apt repository"
    )
    repository: MirrorUrl = Field(
        "https://download.docker.com/linux",
        description="Docker's repositories or a mirror of them, without the distribution; for source=docker",
    )
    repository_key_sha256: str = Field(
        "1500c1f56fa9e26b9b8f42452a553675796ade0807cdce11975eb98170b3a570",
        pattern=r"^[0-9a-f]{64}$",
        description="SHA-256 of <repository>/debian/gpg; default: key 9DC858229FC7DD38854AE2D88D81803C0EBFCD88",
    )
    compose_repository: MirrorUrl = Field(
        "http://deb.debian.org/debian",
        description="Debian mirror for the one package Debian 12 takes from Debian 13: Compose v2",
    )
    data_root: DataRoot = Field("/var/lib/docker", description="Where images and containers are kept")
    log_driver: Literal["local", "json-file"] = Field("local", description="Format of container logs on disk")
    log_max_size_mib: int = Field(
        50, ge=1, le=10240, description="Size at which a container's log file is rotated, MiB"
    )
    log_max_files: int = Field(5, ge=1, le=100, description="Log files kept for each container")
    live_restore: bool = Field(True, description="Containers go on running while the daemon is restarted")
    registry_mirrors: tuple[MirrorUrl, ...] = Field((), description="Mirrors of Docker Hub asked first")
    address_pools: tuple[AddressPool, ...] = Field(
        (), description="Networks Docker may use; empty: Docker's own (172.17.0.0/16 and up)"
    )

    @model_validator(mode="after")
    def _pools_are_apart(self) -> DockerSettings:
        pools = self.address_pools
        for number, pool in enumerate(pools):
            for other in pools[number + 1 :]:
                if pool.base.overlaps(other.base):
                    raise ValueError(f"address_pools: {pool.base} overlaps {other.base}")
        return self

    @model_validator(mode="after")
    def _bundles_have_debian_s_packages(self) -> DockerSettings:
        if self.source == "docker" and self.bundle.path and self.enabled:
            raise ValueError("source=docker: a bundle has the distribution's packages; use source=debian with one")
        return self

    def packages_for(self, distribution: str, codename: str) -> tuple[str, ...]:
        """What brings the engine and Compose v2; nothing of Docker's own repository, which a bundle does not have."""
        from roles.docker.packages import choose

        chosen = choose(self, distribution, codename).packages if self.source == "debian" else ()
        return ("ca-certificates", "curl", *chosen)

    @property
    def log_bytes_per_container(self) -> int:
        """Most bytes a container's log takes on disk, before compression."""
        return self.log_max_size_mib * self.log_max_files * 1024 * 1024
