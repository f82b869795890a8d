"""What an NVIDIA card's PCI device id tells, before any driver is installed.

The table ``cards.tsv`` beside this file is made from pci.ids by :mod:`gpurack.gpu.table`.
"""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files

from pydantic import BaseModel, ConfigDict

from gpurack.gpu.models import Architecture

# NVIDIA's code names: two letters for the generation, then the chip. Ada's and Turing's first letter is not G.
GENERATIONS = {
    "GF": Architecture.FERMI,
    "GK": Architecture.KEPLER,
    "GM": Architecture.MAXWELL,
    "GP": Architecture.PASCAL,
    "GV": Architecture.VOLTA,
    "TU": Architecture.TURING,
    "GA": Architecture.AMPERE,
    "AD": Architecture.ADA,
    "GH": Architecture.HOPPER,
    "GB": Architecture.BLACKWELL,
}
MEMORY = re.compile(r"\b(\d{1,4}) ?GB\b")


class CardType(BaseModel):
    """A kind of card.

    Attributes:
        name: marketing name, such as ``GeForce RTX 4090``; the chip's where it has none.
        chip: code name of the GPU, such as ``AD102``.
        architecture: its generation.
        memory_gib: memory, where the name tells it.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    chip: str
    architecture: Architecture
    memory_gib: int | None = None


def lookup(device_id: str) -> CardType | None:
    """Return the kind of card with a PCI device id of NVIDIA, such as ``2684`` or ``0x2684``.

    None for an id that is in no pci.ids yet, is older than Fermi, or is no GPU (audio function, NVSwitch, Tegra).
    """
    entry = _table().get(device_id.strip().lower().removeprefix("0x"))
    if entry is None:
        return None
    chip, name = entry
    return CardType(name=name, chip=chip, architecture=GENERATIONS[chip[:2]], memory_gib=memory_in(name))


def memory_in(name: str) -> int | None:
    """Return the memory a name states; None when it states none, or several (``Mobile / Max-Q 8GB/16GB``)."""
    sizes = set(MEMORY.findall(name))
    return int(sizes.pop()) if len(sizes) == 1 else None


@cache
def _table() -> dict[str, tuple[str, str]]:
    """Return chip and name by device id."""
    text = files("gpurack.gpu").joinpath("cards.tsv").read_text(encoding="utf-8")
    lines = (line.split("\t") for line in text.splitlines() if line and not line.startswith("#"))
    return {device: (chip, name) for device, chip, name in lines}
