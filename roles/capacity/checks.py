"""Controls of the capacity role."""

from __future__ import annotations

import re
from typing import Any

from gpurack.capacity.memory import GIB
from gpurack.controls import NotApplicable, control
from gpurack.facts.gpu import PciDevices
from gpurack.gpu.evidence import read
from roles.capacity.settings import CapacitySettings

KEPT_BY_FIRMWARE = 0.9
"""Share of a host's memory that Linux must see: firmware and kernel keep some, and modules are sold in whole GiB."""


@control("CAP-01", "The hardware that models were planned for is there", severity="high")
def test_declared_hardware(host: Any, settings: CapacitySettings) -> None:
    """A plan made before delivery is worth nothing when a card or a memory module less was built in."""
    if settings.hardware is None:
        raise NotApplicable("no hardware is declared")
    memory = re.search(r"^MemTotal:\s+(\d+) kB", host.file("/proc/meminfo").content_string, re.MULTILINE)
    assert memory, "/proc/meminfo does not state MemTotal"
    there = int(memory[1]) * 1024 / GIB
    wanted = settings.hardware.ram_gib
    assert there >= wanted * KEPT_BY_FIRMWARE, f"{there:.1f} GiB of memory are there, and {wanted:g} are declared"
    cards = read(host, PciDevices).cards
    declared = [kind for kind in settings.hardware.gpus for _ in range(kind.count)]
    assert len(cards) >= len(declared), (
        f"{len(cards)} NVIDIA cards are there, and {len(declared)} are declared: "
        f"{', '.join(kind.card for kind in declared)}"
    )
    named = sorted(card.memory_gib for card in cards if card.memory_gib is not None)
    if len(named) == len(cards):
        short = [
            f"{there} GiB for {wanted:.0f} GiB"
            for there, wanted in zip(
                reversed(named), sorted((kind.memory_bytes / GIB for kind in declared), reverse=True), strict=False
            )
            if there < wanted * KEPT_BY_FIRMWARE
        ]
        assert not short, f"cards have less memory than declared: {', '.join(short)}"
