"""Capacity: what models need, what a host has, and whether the one fits the other, before anything is pulled."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyinfra import logger

from gpurack.capacity.hardware import Hardware, HardwareError
from gpurack.capacity.plan import HostPlan, Verdict, plan
from gpurack.capacity.situations import declared_hardware, read_hardware, situation
from gpurack.facts.capacity import ModelRoom
from gpurack.facts.gpu import Nvml, PciDevices

if TYPE_CHECKING:
    from pyinfra.api.host import Host

    from roles.capacity.settings import CapacitySettings
    from roles.ollama.settings import OllamaSettings
    from roles.ollama_models.settings import OllamaModelsSettings


def obstacles(host: Host, models: OllamaModelsSettings, server: OllamaSettings) -> list[str]:
    """Return why a host's models do not fit it, one line each, with the cheapest cure; empty when they fit.

    Reads facts of the host that pyinfra is preparing; changes nothing. The host's own settings of the role capacity
    apply. What cannot be planned is no obstacle, and is warned of: a model of which nothing is known, and a GPU whose
    driver does not answer yet and whose name does not tell its memory, where no hardware is declared either.
    """
    from gpurack.settings import settings_for
    from roles.capacity.settings import CapacitySettings

    capacity = settings_for(host, CapacitySettings)
    room = host.get_fact(ModelRoom, models_dir=server.models_dir)
    try:
        hardware = read_hardware(server, room, host.get_fact(PciDevices), host.get_fact(Nvml))
    except HardwareError as error:
        instead = _declared(capacity, server)
        if instead is None:
            logger.warning(f"{host.print_prefix}models' memory is not planned: {error}")
            return []
        hardware = instead
    found = plan(host.name, situation(models, server, capacity, hardware))
    for model in found.models:
        if model.verdict is Verdict.UNKNOWN:
            logger.warning(f"{host.print_prefix}not planned: {'; '.join(model.reasons)}")
    return obstacles_in(found)


def _declared(capacity: CapacitySettings, server: OllamaSettings) -> Hardware | None:
    try:
        return declared_hardware(capacity, server)
    except HardwareError:
        return None


def obstacles_in(found: HostPlan) -> list[str]:
    """Return what stands against a plan, one line each."""
    lines = []
    for model in found.models:
        if model.verdict in {Verdict.FITS, Verdict.UNKNOWN}:
            continue
        cure = f"; it fits with {model.changes[0]}" if model.changes else ""
        lines.append(f"{model.wanted.name}: {'; '.join(model.reasons)}{cure}")
    return [*lines, *found.disk_reasons]
