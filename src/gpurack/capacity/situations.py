"""From settings and facts to what a plan depends on."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from gpurack.capacity.catalogue import Profile, UnknownModelError, find
from gpurack.capacity.gguf_file import GgufError, read
from gpurack.capacity.hardware import Device, Hardware, declared, found
from gpurack.capacity.memory import GIB, MIB
from gpurack.capacity.plan import Server, Situation, Wanted
from gpurack.facts.capacity import Room
from gpurack.gpu.models import NvmlReport, PciInventory
from gpurack.ollama.names import ModelName

if TYPE_CHECKING:
    from roles.capacity.settings import CapacitySettings
    from roles.ollama.settings import OllamaSettings
    from roles.ollama_models.settings import OllamaModel, OllamaModelsSettings


def situation(
    models: OllamaModelsSettings, server: OllamaSettings, capacity: CapacitySettings, hardware: Hardware
) -> Situation:
    """Return what a host's plan depends on."""
    return Situation(
        hardware=hardware,
        server=Server(
            accelerator=server.accelerator,
            num_parallel=server.num_parallel,
            context_length=server.context_length,
            cache_type=server.kv_cache_type,
            flash_attention=server.flash_attention,
            max_loaded_models=server.max_loaded_models,
            spread=server.spread,
        ),
        models=tuple(wanted(models, server)),
        cpu_offload=capacity.cpu_offload,
        gpu_reserve=capacity.gpu_reserve_mib * MIB,
        ram_reserve=int(capacity.ram_reserve_gib * GIB),
        disk_reserve=models.disk_reserve_gib * GIB,
    )


def wanted(models: OllamaModelsSettings, server: OllamaSettings) -> Iterable[Wanted]:
    """Yield the models that a host is to have; one whose size is not known says why."""
    for name, model in models.models.items():
        if not model.present:
            continue
        profile, unknown = None, ""
        try:
            profile = profile_of(name, model, models)
        except (UnknownModelError, GgufError) as error:
            unknown = str(error)
        yield Wanted(
            name=name,
            files=_files(name, model),
            profile=profile,
            unknown=unknown,
            num_ctx=model.parameters.num_ctx,
            num_gpu=model.parameters.num_gpu,
            num_batch=model.parameters.num_batch,
            resident=model.preload or server.keep_alive == "forever",
        )


def _files(name: str, model: OllamaModel) -> tuple[str, ...]:
    """Return the keys under which a model's weights may be on the disk, the one they are shared by first."""
    own = ModelName.parse(name)
    shared = ModelName.parse(model.base) if model.base else own
    keys = (shared.key, shared.base.key, own.key)
    return (str(model.gguf), own.key) if model.gguf else tuple(dict.fromkeys(keys))


def profile_of(name: str, model: OllamaModel, models: OllamaModelsSettings) -> Profile:
    """Return what is known of a declared model: from its file, its base, or the catalogue.

    Raises:
        UnknownModelError: nothing is known of it.
        GgufError: its file, or that of its base, cannot be read.
    """
    if model.gguf is not None:
        return read(Path(model.gguf), name, quantise=model.quantize.upper() if model.quantize else None)
    if model.safetensors is not None:
        raise UnknownModelError(
            f"{name} is made from safetensors, whose dimensions are not read: make a GGUF file of it with llama.cpp's "
            f"convert_hf_to_gguf.py and declare it with ollama_models.models.{name}.gguf"
        )
    if model.base is not None:
        if (base := models.models.get(model.base)) is not None:
            return profile_of(model.base, base, models)
        return find(model.base)
    return find(name)


def declared_hardware(capacity: CapacitySettings, server: OllamaSettings) -> Hardware | None:
    """Return the hardware declared for a host; None when there is none.

    Raises:
        HardwareError: the ollama role's settings choose GPUs that are not declared.
    """
    if capacity.hardware is None:
        return None
    if server.accelerator == "cpu":
        return declared(capacity.hardware)
    return declared(capacity.hardware, count=server.gpu_count, ids=server.gpu_device_ids)


def read_hardware(server: OllamaSettings, room: Room, pci: PciInventory, nvml: NvmlReport) -> Hardware:
    """Return the hardware that facts found on a host.

    Raises:
        HardwareError: its GPUs cannot be planned with.
    """
    devices: tuple[Device, ...] = ()
    if server.accelerator == "nvidia":
        devices = found(pci, nvml, count=server.gpu_count, ids=server.gpu_device_ids)
    return Hardware(
        source="read", devices=devices, ram_bytes=room.ram_bytes, disk_bytes=room.disk_bytes, installed=room.models
    )
