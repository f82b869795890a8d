"""A service of a Compose project: what its maker's image wants, and what settings say, in one value.

Roles that run several images of one kind describe each as a :class:`Service`; one template writes the Compose file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from gpurack.settings import Location

PUBLISHED = {"ollama": 11434, "anythingllm": 3001}
"""Ports of roles with one ``publish_port``, by their defaults; both listen on 127.0.0.1 unless told otherwise."""

UNFIT = re.compile(r"[\r\n'\\\0]")
"""What a value in single quotes of an env file cannot hold for every release of Compose."""


class Publish(BaseModel):
    """Where a service is reached from outside of Docker's networks."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    address: IPv4Address | IPv6Address = Field(IPv4Address("127.0.0.1"), description="Address of the host")
    port: int = Field(ge=1, le=65535, description="Port of the host")

    def __str__(self) -> str:
        return _with_port(self.address, self.port)

    @property
    def local(self) -> str:
        """Where programs on the host itself reach it, address and port."""
        loopback = ip_address("::1" if self.address.version == 6 else "127.0.0.1")
        return _with_port(loopback if self.address.is_unspecified else self.address, self.port)


def _with_port(address: IPv4Address | IPv6Address, port: int) -> str:
    return f"[{address}]:{port}" if isinstance(address, IPv6Address) else f"{address}:{port}"


@dataclass(frozen=True)
class Service:
    """One container that serves.

    Attributes:
        name: of the project, of the service, and on the network.
        image: name in ``images.toml``.
        port: on which it serves in its container.
        health: command in the container that tells whether it serves.
        user: numeric user and group it runs as, such as ``1000:1000``; None for root, where the image needs that.
        command: replaces the image's; empty for that.
        environment: what is no secret.
        secrets: what is one, by variable.
        folders: directory below the service's own on the host -> path in the container.
        files: file beside the Compose file on the host -> path in the container, read-only.
        tmpfs: paths in memory.
        shm_size: of ``/dev/shm``; empty for Docker's default of 64 MiB.
        stop_seconds: it is given to end by itself.
    """

    name: str
    image: str
    port: int
    health: tuple[str, ...]
    user: str | None = None
    command: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    folders: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    tmpfs: tuple[str, ...] = ()
    shm_size: str = ""
    stop_seconds: int = 30

    @property
    def owner(self) -> str:
        """``user:group`` of the data on the host."""
        return self.user or "0:0"


def env_file(values: Mapping[str, str]) -> str:
    """Return the text of the ``.env`` beside a Compose file; values are in single quotes and taken as they are.

    The Compose file names each as ``${NAME:?}``. With ``env_file:`` Compose computes another hash of the configuration
    when it is asked for it than when it makes the container, and would seem to have something to do at every run.

    Raises:
        ValueError: a value has a character in it that such a file cannot hold; see :data:`UNFIT`.
    """
    for name, value in values.items():
        if UNFIT.search(value):
            raise ValueError(f"{name}: a quotation mark, backslash or line break cannot be in this secret")
    return "".join(f"{name}='{value}'\n" for name, value in values.items())


def claimed_ports(data: Mapping[str, Any]) -> Iterator[tuple[str, int, str]]:
    """Yield the host ports that roles publish, as (setting, port, address), from a host's raw settings.

    Args:
        data: settings by role, as ``RoleSettings.problems_on`` gets them. Wrong ones are left out: they are reported
            elsewhere.
    """
    for role, default in PUBLISHED.items():
        values = data.get(role)
        enabled = role == "ollama" if values is None else isinstance(values, Mapping) and values.get("enabled") is True
        if role == "ollama" and isinstance(values, Mapping):
            enabled = values.get("enabled", True) is True
        if enabled:
            values = values if isinstance(values, Mapping) else {}
            port = values.get("publish_port", default)
            if isinstance(port, int):
                yield f"{role}.publish_port", port, str(values.get("publish_address", "127.0.0.1"))
    for role in ("vectordb", "searxng"):
        values = data.get(role)
        if isinstance(values, Mapping) and values.get("enabled", role == "vectordb") is True:
            blocks = [(role, values), *((f"{role}.{key}", item) for key, item in values.items())]
            for where, block in blocks:
                publish = block.get("publish") if isinstance(block, Mapping) else None
                if isinstance(publish, Mapping) and isinstance(publish.get("port"), int):
                    yield f"{where}.publish", publish["port"], str(publish.get("address", "127.0.0.1"))


def port_clashes(role: str, data: Mapping[str, Any]) -> Iterator[tuple[Location, str]]:
    """Yield a role's published ports that another service of the host claims too."""
    claims = list(claimed_ports(data))
    for where, port, address in claims:
        if not where.startswith(f"{role}."):
            continue
        for other, other_port, other_address in claims:
            if other != where and other_port == port and _overlap(address, other_address):
                location = (*where.removeprefix(f"{role}.").split("."), "port")
                yield location, f"{other} has port {port} too; one of them must change"


def _overlap(one: str, other: str) -> bool:
    everywhere = {"0.0.0.0", "::"}  # noqa: S104 - compared, not bound
    return one == other or one in everywhere or other in everywhere
