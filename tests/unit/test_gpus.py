"""The table of GPUs: cards and GPUs brought together, hosts selected."""

from __future__ import annotations

from io import StringIO

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from pyinfra.api.inventory import Inventory
from rich.console import Console

from gpurack.fleet import selected
from gpurack.gpu.models import Architecture, Card, Gpu, GpuProcess, MigInstance, NvmlReport, PciInventory
from gpurack.gpus import HostGpus, paired, rows, show
from gpurack.lab.cli import lab

RTX = Card(
    address="0000:41:00.0",
    device_id="2684",
    name="GeForce RTX 4090",
    architecture=Architecture.ADA,
    driver="nvidia",
)
A100 = Card(address="0000:42:00.0", device_id="20b2", name="A100 SXM4 80GB", memory_gib=80, driver="nvidia")
GPU = Gpu(
    index=0,
    name="NVIDIA GeForce RTX 4090",
    address="0000:41:00.0",
    memory_total_bytes=24 * 1024**3,
    memory_used_bytes=6 * 1024**3,
    utilization_percent=0,
    power_watts=71.4,
    power_limit_watts=450,
    processes=(GpuProcess(pid=7, name="/usr/bin/ollama"),),
)


def report(*gpus: Gpu, error: str = "") -> NvmlReport:
    """Return a driver's answer."""
    return NvmlReport(source="nvml", driver_version="550.163.01", cuda_version="12.4", gpus=gpus, error=error)


def test_cards_and_gpus_meet_at_their_address() -> None:
    pci = PciInventory(cards=(RTX, A100))
    second = Gpu(index=0, address="0000:42:00.0")
    assert paired(pci, report(second)) == [(A100, second), (RTX, None)]
    assert paired(PciInventory(), report(GPU)) == [(None, GPU)]


def test_a_lost_gpu_is_the_card_that_is_left() -> None:
    lost = Gpu(index=1, error="GPU is lost")
    assert paired(PciInventory(cards=(RTX, A100)), report(GPU, lost)) == [(RTX, GPU), (A100, lost)]
    # With two left it might be either.
    other = Card(address="0000:43:00.0", device_id="20b2", name="A100")
    assert paired(PciInventory(cards=(RTX, A100, other)), report(GPU, lost)) == [
        (RTX, GPU),
        (None, lost),
        (A100, None),
        (other, None),
    ]


ADDRESS = st.sampled_from(["", "0000:41:00.0", "0000:42:00.0", "0000:43:00.0"])


@given(
    st.lists(ADDRESS.filter(bool), unique=True),
    st.lists(ADDRESS),
)
def test_nothing_is_left_out_or_counted_twice(cards: list[str], gpus: list[str]) -> None:
    pci = PciInventory(cards=tuple(Card(address=address, device_id="2684", name="x") for address in cards))
    nvml = report(*(Gpu(index=index, address=address) for index, address in enumerate(gpus)))
    pairs = paired(pci, nvml)
    assert sorted(card.address for card, _ in pairs if card) == sorted(cards)
    assert sorted(gpu.index for _, gpu in pairs if gpu) == list(range(len(gpus)))


def test_a_row_tells_what_both_know() -> None:
    [row] = rows(HostGpus(host="gpu1", pci=PciInventory(cards=(RTX,)), nvml=report(GPU)))
    assert row == {
        "host": "gpu1",
        "gpu": "0",
        "name": "GeForce RTX 4090",
        "architecture": "Ada Lovelace",
        "memory": "6.0/24 GiB",
        "driver": "550.163.01",
        "CUDA": "12.4",
        "use": "0 %",
        "power": "71 W/450 W",
        "processes": "ollama (7)",
        "note": "",
    }


@pytest.mark.parametrize(
    ("found", "note"),
    [
        (HostGpus(host="gpu1", error="no route"), "cannot be read: no route"),
        (HostGpus(host="gpu1"), "no NVIDIA card"),
        (HostGpus(host="gpu1", pci=PciInventory(cards=(RTX.model_copy(update={"driver": None}),))), "no NVIDIA driver"),
        (
            HostGpus(host="gpu1", pci=PciInventory(cards=(RTX,))),
            "neither python3-pynvml nor nvidia-smi is there to ask the driver",
        ),
        (HostGpus(host="gpu1", pci=PciInventory(cards=(RTX,)), nvml=report()), "not seen by the driver"),
        (
            HostGpus(host="gpu1", pci=PciInventory(cards=(RTX,)), nvml=NvmlReport(source="nvml", error="mismatch")),
            "mismatch",
        ),
    ],
)
def test_a_note_says_why_there_is_no_more(found: HostGpus, note: str) -> None:
    assert [row["note"] for row in rows(found)] == [note]


def test_ecc_and_mig_in_words() -> None:
    migs = (MigInstance(profile="3g.20gb", uuid="MIG-1"), MigInstance(profile="1g.5gb", uuid="MIG-2"))
    cases = [
        Gpu(index=0, ecc_enabled=True, ecc_uncorrected=3, pending_row_remap=True, mig_enabled=True, mig=migs),
        Gpu(index=1, ecc_enabled=True, mig_enabled=True, throttle_reasons=("hw_slowdown",)),
        Gpu(index=2, ecc_enabled=False, mig_enabled=False),
    ]
    found = rows(HostGpus(host="gpu1", nvml=report(*cases)))
    assert [row.get("ECC") for row in found] == ["3 errors", "on", "off"]
    assert [row.get("MIG") for row in found] == ["3g.20gb, 1g.5gb", "on, empty", "off"]
    assert [row["note"] for row in found] == ["a reset is due: memory to be mapped out", "hw_slowdown", ""]


def test_names_from_hosts_are_printed_as_they_are() -> None:
    output = StringIO()
    gpu = GPU.model_copy(update={"name": "[red]card[/red]", "error": "[bold]lost\x1b[2J\n"})
    show([HostGpus(host="gpu1", nvml=report(gpu))], Console(file=output))
    assert "[red]card[/red]" in output.getvalue() and "[bold]lost [2J" in output.getvalue()


def test_hosts_are_selected_by_name_group_and_pattern() -> None:
    inventory = Inventory((["gpu1", "gpu2", "web1"], {}), gpu=(["gpu1", "gpu2"], {}))
    names = [host.name for host in selected(inventory, ["gpu"])]
    assert names == ["gpu1", "gpu2"]
    assert [host.name for host in selected(inventory, ["web*", "gpu2"])] == ["gpu2", "web1"]
    assert [host.name for host in selected(inventory)] == ["gpu1", "gpu2", "web1"]
    with pytest.raises(LookupError, match="no host or group gpu3, x in the inventory"):
        selected(inventory, ["gpu1", "gpu3", "x"])


def test_a_pretended_card_is_a_device_id() -> None:
    result = CliRunner().invoke(lab, ["up", "--card", "RTX4090"])
    assert result.exit_code == 2 and "no PCI device id" in result.output
