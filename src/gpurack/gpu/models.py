"""What gpurack knows of a host's GPUs: typed results of the facts in :mod:`gpurack.facts.gpu`."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, ConfigDict


class Architecture(StrEnum):
    """NVIDIA's GPU generations, oldest first; what driver branches and kernel modules support goes by these."""

    FERMI = "Fermi"
    KEPLER = "Kepler"
    MAXWELL = "Maxwell"
    PASCAL = "Pascal"
    VOLTA = "Volta"
    TURING = "Turing"
    AMPERE = "Ampere"
    ADA = "Ada Lovelace"
    HOPPER = "Hopper"
    BLACKWELL = "Blackwell"

    @property
    def rank(self) -> int:
        """Position in time, for comparisons."""
        return list(Architecture).index(self)


class _Result(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Card(_Result):
    """An NVIDIA GPU as the PCI bus shows it, whether or not a driver is installed.

    Attributes:
        address: PCI address with domain, such as ``0000:01:00.0``.
        device_id: PCI device id in four hexadecimal digits, such as ``2684``.
        name: marketing name of pci.ids, such as ``GeForce RTX 4090``; the id when it is not in the table.
        chip: code name of the GPU, such as ``AD102``; empty when unknown.
        architecture: generation; None when the id is not in the table.
        memory_gib: memory where the name tells it (``A100 SXM4 80GB``); None where it does not.
        driver: kernel driver bound to it, such as ``nvidia``, ``nouveau`` or ``vfio-pci``; None without one.
    """

    address: str
    device_id: str
    name: str
    chip: str = ""
    architecture: Architecture | None = None
    memory_gib: int | None = None
    driver: str | None = None


class PciInventory(_Result):
    """All of NVIDIA's devices on the PCI bus that matter here.

    Attributes:
        cards: GPUs, by address.
        nvswitches: addresses of NVSwitch bridges; a machine with any needs the fabric manager.
    """

    cards: tuple[Card, ...] = ()
    nvswitches: tuple[str, ...] = ()


class GpuProcess(_Result):
    """A process that uses a GPU; ``memory_bytes`` is None where the driver does not tell (in containers, MIG)."""

    pid: int
    name: str = ""
    memory_bytes: int | None = None


class MigInstance(_Result):
    """A MIG device: its profile's name (``3g.20gb``), UUID and memory in bytes."""

    profile: str
    uuid: str
    memory_bytes: int | None = None


class Gpu(_Result):
    """One GPU as NVML sees it. A figure is None where the card or the driver does not give it.

    Attributes:
        index: NVML's index.
        uuid: ``GPU-...``.
        name: product name.
        address: PCI address in the form of :attr:`Card.address`.
        memory_total_bytes: frame buffer.
        memory_used_bytes: of it, in use.
        utilization_percent: share of the last sample period in which a kernel ran.
        temperature_celsius: of the GPU.
        temperature_slowdown_celsius: from which the card slows itself down.
        power_watts: drawn.
        power_limit_watts: enforced limit.
        throttle_reasons: names of the active clock throttle reasons that cost speed, such as
            ``hw_thermal_slowdown``, ``sw_thermal_slowdown``, ``hw_power_brake_slowdown``, ``sw_power_cap``.
        ecc_enabled: None on cards without ECC.
        ecc_uncorrected: uncorrected errors since the driver was loaded.
        pending_row_remap: a row remapping or page retirement waits for a reset.
        persistence: persistence mode.
        mig_enabled: None on cards without MIG.
        mig: MIG devices.
        nvlinks_active: active NVLink links.
        processes: compute processes.
        error: why nothing more is known of this GPU, in NVML's words ("GPU is lost").
    """

    index: int
    uuid: str = ""
    name: str = ""
    address: str = ""
    memory_total_bytes: int | None = None
    memory_used_bytes: int | None = None
    utilization_percent: int | None = None
    temperature_celsius: int | None = None
    temperature_slowdown_celsius: int | None = None
    power_watts: float | None = None
    power_limit_watts: float | None = None
    throttle_reasons: tuple[str, ...] = ()
    ecc_enabled: bool | None = None
    ecc_uncorrected: int | None = None
    pending_row_remap: bool | None = None
    persistence: bool | None = None
    mig_enabled: bool | None = None
    mig: tuple[MigInstance, ...] = ()
    nvlinks_active: int | None = None
    processes: tuple[GpuProcess, ...] = ()
    error: str = ""


class NvmlReport(_Result):
    """What the driver says.

    Attributes:
        source: ``nvml`` (pynvml on the host), ``nvidia-smi`` (its XML), or ``none`` when neither is there.
        error: why there is nothing, in the driver's words, such as ``Driver/library version mismatch``;
            empty when the driver answered.
        driver_version: such as ``550.163.01``.
        cuda_version: highest CUDA version the driver supports, such as ``12.4``.
        gpus: the GPUs.
    """

    source: Literal["nvml", "nvidia-smi", "none"] = "none"
    error: str = ""
    driver_version: str = ""
    cuda_version: str = ""
    gpus: tuple[Gpu, ...] = ()


class XidError(_Result):
    """An XID error of the kernel log: number, PCI address, the line's text, and seconds since 1970."""

    xid: int
    address: str
    message: str
    time: float


def pci_address(text: str) -> str:
    """Return a PCI address in the one form used here, ``0000:01:00.0``; other text as it is.

    sysfs writes a domain of four digits, NVML one of eight, nvidia-smi capitals; an XID error names no function.
    """
    match = re.fullmatch(r"(?:0000)?([0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2})(?:\.([0-7]))?", text.strip().lower())
    return f"{match[1]}.{match[2] or 0}" if match else text
