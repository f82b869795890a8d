"""``gpurack gpus``: the GPUs of an inventory's hosts, as their PCI bus and their driver see them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pydantic import BaseModel
from pyinfra.api.host import Host
from pyinfra.api.inventory import Inventory
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gpurack.facts.gpu import Nvml, PciDevices
from gpurack.fleet import HostError, connection, on_each, read
from gpurack.gpu.models import Card, Gpu, NvmlReport, PciInventory

COLUMNS = (
    *("host", "gpu", "name", "architecture", "memory", "driver", "CUDA", "use", "temperature", "power", "ECC", "MIG"),
    *("processes", "note"),
)
GIB = 1024**3
SILENT = {
    "none": "neither python3-pynvml nor nvidia-smi is there to ask the driver",
    "nvml": "not seen by the driver",
    "nvidia-smi": "not seen by the driver",
}
"""Why nothing more is known of a card that the driver is bound to."""

# Everything in one line each, for grep, where there is no terminal whose width would count.
PIPE_WIDTH = 240


class HostGpus(BaseModel):
    """What was found on a host; ``error`` says why nothing could be found out."""

    host: str
    error: str = ""
    pci: PciInventory = PciInventory()
    nvml: NvmlReport = NvmlReport()


def gpus(inventory: Inventory, *, limit: Sequence[str] = ()) -> Iterator[HostGpus]:
    """Read the GPUs of every host, several hosts at a time; nothing is changed.

    Raises:
        LookupError: an entry of ``limit`` selects no host.
    """
    yield from on_each(inventory, gpus_of, limit=limit)


def gpus_of(host: Host) -> HostGpus:
    """Read the GPUs of one host of an initialised inventory."""
    try:
        with connection(host):
            return HostGpus(host=host.name, pci=read(host, PciDevices), nvml=read(host, Nvml))
    except HostError as error:
        return HostGpus(host=host.name, error=str(error))


def paired(pci: PciInventory, nvml: NvmlReport) -> list[tuple[Card | None, Gpu | None]]:
    """Return each card with the GPU that NVML calls it; either is None where the other knows nothing of it.

    A GPU that is lost has no address; where as many cards as GPUs are left over, they are the same, in NVML's order.
    """
    cards = {card.address: card for card in pci.cards}
    found = {gpu.index: cards.pop(gpu.address, None) for gpu in nvml.gpus}
    strays = [gpu for gpu in nvml.gpus if not gpu.address]
    if len(strays) == len(cards):
        found |= {gpu.index: cards.pop(card.address) for gpu, card in zip(strays, list(cards.values()), strict=True)}
    return [*((found[gpu.index], gpu) for gpu in nvml.gpus), *((card, None) for card in cards.values())]


def show(found: Sequence[HostGpus], console: Console) -> None:
    """Print the table."""
    table = Table(box=None, pad_edge=False)
    for column in COLUMNS:
        table.add_column(column, overflow="fold")
    for host in found:
        for row in rows(host):
            table.add_row(*(Text(_printable(row.get(column, ""))) for column in COLUMNS))
    if not console.is_terminal:
        console.width = PIPE_WIDTH
    console.print(table)


def _printable(text: str) -> str:
    """Return a text without characters that would steer the terminal; it comes from a host."""
    return "".join(character if character.isprintable() else " " for character in text)


def rows(found: HostGpus) -> list[dict[str, str]]:
    """Return a host's rows, by column: one for each GPU, or one that says why there is none."""
    if found.error:
        return [{"host": found.host, "note": f"cannot be read: {found.error}"}]
    if not (pairs := paired(found.pci, found.nvml)):
        return [{"host": found.host, "note": "no NVIDIA card"}]
    return [
        {
            "host": found.host,
            **(_card(card, found.nvml) if card else {}),
            **(_gpu(gpu, found.nvml) if gpu else {}),
        }
        for card, gpu in pairs
    ]


def _card(card: Card, nvml: NvmlReport) -> dict[str, str]:
    """Return what the PCI bus tells of a card; the note holds when NVML says nothing of it."""
    return {
        "gpu": "-",
        "name": card.name,
        "architecture": card.architecture or "",
        "memory": f"{card.memory_gib} GiB" if card.memory_gib else "",
        "driver": card.driver or "none",
        "note": nvml.error or (SILENT[nvml.source] if card.driver == "nvidia" else "no NVIDIA driver"),
    }


def _gpu(gpu: Gpu, nvml: NvmlReport) -> dict[str, str]:
    """Return what NVML tells of a GPU; what it does not tell is left to the PCI bus."""
    notes = [
        gpu.error,
        *gpu.throttle_reasons,
        "a reset is due: memory to be mapped out" if gpu.pending_row_remap else "",
    ]
    used, total = gpu.memory_used_bytes, gpu.memory_total_bytes
    told = {
        "name": gpu.name.removeprefix("NVIDIA "),
        "memory": "" if used is None or total is None else f"{used / GIB:.1f}/{total / GIB:.0f} GiB",
        "use": _with_unit(gpu.utilization_percent, " %"),
        "temperature": _with_unit(gpu.temperature_celsius, " °C"),
        "power": "/".join(f"{watts:.0f} W" for watts in (gpu.power_watts, gpu.power_limit_watts) if watts is not None),
        "ECC": {None: "", True: _with_unit(gpu.ecc_uncorrected, " errors") or "on", False: "off"}[gpu.ecc_enabled],
        "MIG": ", ".join(mig.profile for mig in gpu.mig)
        or {None: "", True: "on, empty", False: "off"}[gpu.mig_enabled],
        "processes": ", ".join(
            f"{process.name.rpartition('/')[2] or '?'} ({process.pid})" for process in gpu.processes
        ),
    }
    return {
        **{column: text for column, text in told.items() if text},
        "gpu": str(gpu.index),
        "driver": nvml.driver_version,
        "CUDA": nvml.cuda_version,
        "note": ", ".join(note for note in notes if note),
    }


def _with_unit(value: int | None, unit: str) -> str:
    return "" if value is None else f"{value}{unit}"
