"""What a host has for models: read from it, or declared in the inventory before it is there."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from gpurack.capacity.memory import GIB
from gpurack.gpu.cards import memory_in
from gpurack.gpu.models import Architecture, Card, Gpu, NvmlReport, PciInventory

DRIVER_SHARE = 0.0125
"""Share of a card's memory that its driver keeps. Derived: an A100 of 81920 MiB had 80567 MiB free for CUDA with
:data:`gpurack.capacity.memory.GPU_CONTEXT` taken (ollama/ollama#8930), which is 1.1 %."""


class DeclaredGpus(BaseModel):
    """Cards of one kind."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    card: str = Field(min_length=1, description="Name, such as `A100 SXM4 80GB`; it may state the memory")
    count: int = Field(1, ge=1, le=64, description="How many of them")
    memory_gib: float | None = Field(None, gt=0, le=2048, description="Memory of one, where its name does not tell it")

    @model_validator(mode="after")
    def _has_memory(self) -> Self:
        if self.memory_gib is None and memory_in(self.card) is None:
            raise ValueError(f"memory_gib: the name {self.card!r} does not tell the card's memory; give it")
        return self

    @property
    def memory_bytes(self) -> int:
        """Memory of one card."""
        return int((self.memory_gib or memory_in(self.card) or 0) * GIB)


class DeclaredHardware(BaseModel):
    """A host's hardware as far as models need it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    gpus: tuple[DeclaredGpus, ...] = Field((), description="NVIDIA cards, in the order of their indexes")
    ram_gib: float = Field(gt=0, le=65536, description="Memory of the host")
    disk_gib: float | None = Field(
        None, gt=0, le=10_000_000, description="Disk for models, empty; left out: disk is not planned"
    )


class Device(BaseModel):
    """A GPU, or a MIG device, that models may use.

    Attributes:
        name: for people.
        memory_bytes: all of it.
        taken_bytes: of it, by others than Ollama.
        flash_attention: whether Ollama has flash attention on it: from Pascal on (``cudaFlashAttentionSupported``).
    """

    model_config = ConfigDict(frozen=True)

    name: str
    memory_bytes: int
    taken_bytes: int = 0
    flash_attention: bool = True


class Hardware(BaseModel):
    """What models may use.

    Attributes:
        source: ``read`` from the host, or ``declared``.
        devices: GPUs, in the order of their indexes, as the ollama role's settings choose them.
        ram_bytes: memory of the host.
        disk_bytes: free for models; None when nothing is known of it.
        installed: keys of models that are on the disk already.
    """

    model_config = ConfigDict(frozen=True)

    source: Literal["read", "declared"]
    devices: tuple[Device, ...] = ()
    ram_bytes: int = 0
    disk_bytes: int | None = None
    installed: frozenset[str] = frozenset()


class HardwareError(ValueError):
    """A host's GPUs cannot be planned with; the message says why and what to do."""


def declared(hardware: DeclaredHardware, *, count: int | Literal["all"] = "all", ids: Sequence[str] = ()) -> Hardware:
    """Return declared hardware; count and ids are the ollama role's ``gpu_count`` and ``gpu_device_ids``.

    Raises:
        HardwareError: they choose GPUs that are not declared.
    """
    devices = [
        Device(name=kind.card, memory_bytes=kind.memory_bytes) for kind in hardware.gpus for _ in range(kind.count)
    ]
    chosen = choose({str(index): device for index, device in enumerate(devices)}, count, ids, "declared")
    return Hardware(
        source="declared",
        devices=chosen,
        ram_bytes=int(hardware.ram_gib * GIB),
        disk_bytes=None if hardware.disk_gib is None else int(hardware.disk_gib * GIB),
    )


def found(
    pci: PciInventory, nvml: NvmlReport, *, count: int | Literal["all"], ids: Sequence[str]
) -> tuple[Device, ...]:
    """Return a host's GPUs: by its driver where that answers, else by the PCI bus and the cards' names.

    Raises:
        HardwareError: a card's memory is not known, or the settings choose GPUs that are not there.
    """
    if nvml.gpus and not nvml.error:
        return choose(_by_driver(nvml.gpus), count, ids, "there")
    if any(":" in name or not name.isdecimal() for name in ids):
        raise HardwareError(f"gpu_device_ids {', '.join(ids)} cannot be told apart: the driver does not answer")
    named: dict[str, Device] = {}
    for index, card in enumerate(pci.cards):
        named[str(index)] = _by_name(card)
    return choose(named, count, ids, "there")


def _by_name(card: Card) -> Device:
    if card.memory_gib is None:
        raise HardwareError(
            f"the memory of {card.name} ({card.address}) is not known, as the driver does not answer and the name does "
            "not tell it: run the deploy of the driver first, or declare capacity.hardware"
        )
    old = card.architecture is not None and card.architecture.rank < Architecture.PASCAL.rank
    return Device(name=card.name, memory_bytes=card.memory_gib * GIB, flash_attention=not old)


def _by_driver(gpus: Sequence[Gpu]) -> dict[str, Device]:
    """Return devices by every name that settings may use; a GPU that is divided is only its MIG devices."""
    named: dict[str, Device] = {}
    for gpu in gpus:
        if gpu.error:
            raise HardwareError(f"GPU {gpu.index} does not answer: {gpu.error}; see `gpurack doctor`")
        if gpu.mig_enabled:
            for number, mig in enumerate(gpu.mig):
                device = Device(name=f"{gpu.name} {mig.profile}", memory_bytes=_told(mig.memory_bytes, gpu))
                named |= {f"{gpu.index}:{number}": device, mig.uuid: device}
            continue
        others = sum(process.memory_bytes or 0 for process in gpu.processes if not _is_ollama(process.name))
        device = Device(name=gpu.name, memory_bytes=_told(gpu.memory_total_bytes, gpu), taken_bytes=others)
        named |= {str(gpu.index): device, gpu.uuid: device}
    return named


def _told(memory: int | None, gpu: Gpu) -> int:
    if not memory:
        raise HardwareError(f"the driver does not tell the memory of GPU {gpu.index}; declare capacity.hardware")
    return memory


def _is_ollama(process: str) -> bool:
    return re.search(r"ollama|llama-server", process) is not None


def choose(
    named: Mapping[str, Device], count: int | Literal["all"], ids: Sequence[str], where: str
) -> tuple[Device, ...]:
    """Return the devices that the ollama role's settings give to the server."""
    if ids:
        if missing := [name for name in ids if name not in named]:
            raise HardwareError(
                f"gpu_device_ids names {', '.join(missing)}, and only {', '.join(named) or 'none'} is {where}"
            )
        return tuple(named[name] for name in ids)
    whole = [device for name, device in named.items() if name.isdecimal()]
    if count == "all":
        return tuple(whole or [device for name, device in named.items() if ":" in name])
    if count > len(whole):
        raise HardwareError(f"gpu_count is {count}, and {len(whole)} GPUs are {where}")
    return tuple(whole[:count])


def usable(device: Device, reserve: int) -> int:
    """Return the bytes of a device that models may take, a reserve left."""
    kept: Any = device.memory_bytes * DRIVER_SHARE
    return max(0, device.memory_bytes - int(kept) - device.taken_bytes - reserve)
