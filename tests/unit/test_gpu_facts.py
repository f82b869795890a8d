"""Parsers of the GPU facts: what hosts print, and anything else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpurack.facts.gpu import PciDevices, XidErrors
from gpurack.gpu.models import Architecture, PciInventory, pci_address

DEVICES = """\
0000:3b:00.0 0x2330 0x030200 nvidia
0000:01:00.0 0x2684 0x030000 nouveau
0000:01:00.1 0x22ba 0x040300 snd_hda_intel
0000:02:00.0 0xffff 0x030000\x20
0000:c1:00.0 0x22a3 0x068000 nvidia-nvswitch
0000:00:0a.0 0x0057 0x068000 forcedeth
10000:04:00.0 0x20b2 0x030200 vfio-pci
nonsense
"""


def test_cards_and_switches_are_told_from_the_rest() -> None:
    found = PciDevices().process(DEVICES.splitlines())
    assert [(card.address, card.name, card.driver) for card in found.cards] == [
        ("0000:01:00.0", "GeForce RTX 4090", "nouveau"),
        ("0000:02:00.0", "ffff", None),
        ("0000:3b:00.0", "H100 SXM5 80GB", "nvidia"),
        ("10000:04:00.0", "A100 SXM4 80GB", "vfio-pci"),
    ]
    assert found.cards[2].architecture is Architecture.HOPPER and found.cards[2].memory_gib == 80
    assert (found.cards[1].architecture, found.cards[1].chip, found.cards[1].memory_gib) == (None, "", None)
    # The network controllers of nForce mainboards are bridges of NVIDIA's too.
    assert found.nvswitches == ("0000:c1:00.0",)


@pytest.mark.parametrize(
    ("line", "xid", "address", "time"),
    [
        (
            "1732450000.123456 gpu1 kernel: NVRM: Xid (PCI:0000:3B:00): 79, pid='<unknown>', name=<unknown>, "
            "GPU has fallen off the bus.",
            79,
            "0000:3b:00.0",
            1732450000.123456,
        ),
        ("1732450000.000001 NVRM: Xid (0000:01:00): 13, Graphics Exception", 13, "0000:01:00.0", 1732450000.000001),
        ("1732450000.5 h kernel: NVRM: Xid (PCI:0000:81:00): 119, pid=1", 119, "0000:81:00.0", 1732450000.5),
    ],
)
def test_xid_errors(line: str, xid: int, address: str, time: float) -> None:
    [found] = XidErrors().process([line, "1732450000.1 gpu1 kernel: NVRM: loading NVIDIA UNIX x86_64 Kernel Module"])
    assert (found.xid, found.address, found.time) == (xid, address, time)
    assert found.message.startswith("NVRM: Xid")


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("00000000:3B:00.0", "0000:3b:00.0"),
        ("0000:3b:00", "0000:3b:00.0"),
        ("00010000:3b:00.1", "00010000:3b:00.1"),
        ("0000:3b:00.0", "0000:3b:00.0"),
        ("N/A", "N/A"),
    ],
)
def test_one_form_of_addresses(text: str, address: str) -> None:
    assert pci_address(text) == address


def test_nothing_gives_nothing() -> None:
    assert PciDevices().process([]) == PciInventory() == PciDevices.default()
    assert XidErrors().process([]) == [] == XidErrors.default()


HEX = st.text("0123456789abcdef", min_size=2, max_size=6)
DEVICE = st.builds("{}:{}:{}.{} 0x{} 0x{} {}".format, HEX, HEX, HEX, st.integers(0, 9), HEX, HEX, st.text(max_size=5))


@given(st.lists(st.text() | DEVICE))
def test_no_listing_breaks_the_parser(lines: list[str]) -> None:
    found = PciDevices().process(lines)
    assert all(card.name for card in found.cards)


@given(st.lists(st.text() | st.builds("{} NVRM: Xid (PCI:{}): {}".format, st.text(), st.text(), st.text())))
def test_no_kernel_log_breaks_the_parser(lines: list[str]) -> None:
    assert all(error.xid >= 0 for error in XidErrors().process(lines))
