"""How containers of a host get GPUs: what this role, docker and the roles with GPU services agree on."""

from __future__ import annotations

from pyinfra.api.host import Host

from gpurack.facts.debian import Platform
from gpurack.facts.gpu import PciDevices
from gpurack.facts.toolkit import EngineVersion
from gpurack.gpu.runtime import Mode, choose_mode, engine_major
from gpurack.settings import settings_for
from roles.container_toolkit.settings import ContainerToolkitSettings
from roles.docker.settings import DockerSettings


def mode_of(host: Host, settings: ContainerToolkitSettings | None = None) -> Mode | None:
    """Return how containers of the host get GPUs; None where this role is disabled or the host has no card.

    Args:
        host: a connected host.
        settings: of this role; looked up when None.

    Raises:
        RuntimeModeError: the wanted mode does not work with the host's engine.
    """
    chosen = settings or settings_for(host, ContainerToolkitSettings)
    if not chosen.enabled or not host.get_fact(PciDevices).cards:
        return None
    engine = engine_major(
        host.get_fact(EngineVersion),
        settings_for(host, DockerSettings).source,
        host.get_fact(Platform).codename,
    )
    return choose_mode(chosen.mode, engine)
