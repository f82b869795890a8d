"""Pretended NVIDIA devices on the PCI bus of a test host: what reads sysfs, lspci too, sees them.

A folder in the form of ``/sys/bus/pci/devices`` lies over the container's own, on every nspawn host: a host without
pretended cards has none, whatever is in the machine that runs it.
"""

from __future__ import annotations

import shutil
import struct
from collections.abc import Sequence
from pathlib import Path

NVIDIA = 0x10DE
CARD, BRIDGE = 0x030200, 0x068000
NVSWITCH = "22a3"
# Buses that a virtual machine, such as this one may be, does not use itself.
FIRST_CARD_BUS, FIRST_NVSWITCH_BUS = 0x41, 0xC1


def pretend(folder: Path, cards: Sequence[str], *, nvswitches: int = 0, driver: str | None = None) -> None:
    """Make the devices in a folder, in place of those that are in it.

    Args:
        folder: what lies over ``/sys/bus/pci/devices``; a running host sees the change at once.
        cards: PCI device ids, such as ``2684``.
        nvswitches: NVSwitch bridges.
        driver: kernel driver the devices are bound to, such as ``nvidia`` or ``nouveau``.
    """
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        shutil.rmtree(old)
    for number, device in enumerate(cards):
        _device(folder / address(number), device, CARD, driver)
    for number in range(nvswitches):
        switch = folder / address(number, FIRST_NVSWITCH_BUS)
        _device(switch, NVSWITCH, BRIDGE, "nvidia-nvswitch" if driver == "nvidia" else None)


def address(number: int, first_bus: int = FIRST_CARD_BUS) -> str:
    """Return the PCI address of a pretended card."""
    return f"0000:{first_bus + number:02x}:00.0"


def _device(folder: Path, device: str, cls: int, driver: str | None) -> None:
    folder.mkdir()
    number = int(device, 16)
    for name, value in {
        "vendor": f"0x{NVIDIA:04x}",
        "device": f"0x{number:04x}",
        "class": f"0x{cls:06x}",
        "subsystem_vendor": f"0x{NVIDIA:04x}",
        "subsystem_device": "0x0000",
        "revision": "0xa1",
        "irq": "0",
        "resource": "\n".join(["0x0000000000000000 " * 2 + "0x0000000000000000"] * 13),
    }.items():
        (folder / name).write_text(f"{value}\n")
    # The standard header: vendor, device, command, status, revision and class, header type 0.
    header = struct.pack("<HHHHI", NVIDIA, number, 0, 0, cls << 8 | 0xA1)
    (folder / "config").write_bytes(header.ljust(64, b"\0"))
    if driver:
        (folder / "driver").symlink_to(f"../../../../bus/pci/drivers/{driver}")
