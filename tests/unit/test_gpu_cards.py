"""The table of cards, and how it is made from pci.ids."""

from __future__ import annotations

from importlib.resources import files

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpurack.gpu.cards import GENERATIONS, lookup, memory_in
from gpurack.gpu.models import Architecture
from gpurack.gpu.table import cards_in, table, version_of

PCI_IDS = """\
#	Version: 2026.10.24
10dd  Enertek
	2684  AD102 [of another vendor]
10de  NVIDIA Corporation
	0008  NV1 [STG2000]
	0fbc  GM107 High Definition Audio Controller [GeForce 940MX]
	0fa7  GK11x [Tegra on x86 (PEATRANS)]
	1ad6  TU102 USB 3.1 Host Controller
	20b2  GA100 [A100 SXM4 80GB]
		10de 1463  A100-SXM4-80GB
	20ff  GA100
	22a3  GH100 [H100 NVSwitch]
	22ce  GB10 GEN5 X4 PCIe host
	24fa  GA104 [RTX A4500 Embedded GPU ]
	25ac  GA107BM / GN20-P0-R-K2 [GeForce RTX 3050 6GB Laptop GPU]
	2b00  GB10B [Jetson AGX Thor]
10df  Emulex Corporation
	2685  AD102 [of another vendor]
"""


@pytest.mark.parametrize(
    ("device", "name", "chip", "architecture", "memory"),
    [
        ("06c0", "GeForce GTX 480", "GF100", Architecture.FERMI, None),
        ("102d", "Tesla K80", "GK210", Architecture.KEPLER, None),
        ("17fd", "Tesla M40", "GM200", Architecture.MAXWELL, None),
        ("1b38", "Tesla P40", "GP102", Architecture.PASCAL, None),
        ("1db6", "Tesla V100 PCIe 32GB", "GV100", Architecture.VOLTA, 32),
        ("1eb8", "Tesla T4", "TU104", Architecture.TURING, None),
        ("20b2", "A100 SXM4 80GB", "GA100", Architecture.AMPERE, 80),
        ("2684", "GeForce RTX 4090", "AD102", Architecture.ADA, None),
        ("2330", "H100 SXM5 80GB", "GH100", Architecture.HOPPER, 80),
        ("2b85", "GeForce RTX 5090", "GB202", Architecture.BLACKWELL, None),
    ],
)
def test_a_card_of_each_generation(
    device: str, name: str, chip: str, architecture: Architecture, memory: int | None
) -> None:
    for spelling in (device, device.upper(), f"0x{device}\n"):
        found = lookup(spelling)
        assert found is not None
        assert (found.name, found.chip, found.architecture, found.memory_gib) == (name, chip, architecture, memory)


@pytest.mark.parametrize("device", ["0020", "10f8", "1af1", "22a3", "2b00", "ffff", "", "nonsense"])
def test_no_card_is_no_card(device: str) -> None:
    assert lookup(device) is None


def test_gpus_from_fermi_on_are_taken_and_nothing_else() -> None:
    assert list(cards_in(PCI_IDS)) == [
        ("20b2", "GA100", "A100 SXM4 80GB"),
        ("20ff", "GA100", "GA100"),
        ("24fa", "GA104", "RTX A4500 Embedded GPU"),
        ("25ac", "GA107B", "GeForce RTX 3050 6GB Laptop GPU"),
    ]


def test_the_table_says_what_it_was_made_from() -> None:
    shipped = files("gpurack.gpu").joinpath("cards.tsv").read_text(encoding="utf-8")
    assert version_of(shipped) >= "2026.10.24"
    assert version_of(table(PCI_IDS)) == "2026.10.24"
    assert "Martin Mares" in shipped and "Redistribution and use in source" in shipped
    with pytest.raises(ValueError, match="names no version"):
        table("10de  NVIDIA\n")


def test_every_line_of_the_table_is_a_card() -> None:
    shipped = files("gpurack.gpu").joinpath("cards.tsv").read_text(encoding="utf-8")
    lines = [line.split("\t") for line in shipped.splitlines() if not line.startswith("#")]
    assert len(lines) > 900
    found = [lookup(device) for device, _, _ in lines]
    assert {card.architecture for card in found if card} == set(GENERATIONS.values()) and None not in found


@pytest.mark.parametrize(
    ("name", "memory"),
    [("A800 80GB PCIe", 80), ("GeForce RTX 3080 Mobile / Max-Q 8GB/16GB", None), ("Tesla V100-SXM2-16GB", 16)],
)
def test_memory_only_where_the_name_states_it(name: str, memory: int | None) -> None:
    assert memory_in(name) == memory


@given(st.text(max_size=300))
def test_no_text_breaks_the_reader_of_pci_ids(text: str) -> None:
    for device, chip, name in cards_in(f"10de  NVIDIA\n{text}"):
        assert chip[:2] in GENERATIONS and len(device) == 4 and name
