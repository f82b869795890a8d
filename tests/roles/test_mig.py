"""The mig role on real hosts of each supported release, with the nvidia-smi double: see its README for its limits."""

from __future__ import annotations

from typing import Any

import pytest

from tests.testbed import nvidia

pytestmark = pytest.mark.host

TWO, FIRST = (nvidia.h100(0), nvidia.h100(1)), nvidia.h100(0)["uuid"]
GONE = f"nvidia-smi mig -i {FIRST} -dci && nvidia-smi mig -i {FIRST} -dgi"
HALVES = {"gpu": "all", "profiles": {"3g.40gb": 2}}
MIXED = {"gpu": 1, "profiles": {"1g.10gb": 2, "2g.20gb": 1, "3g.40gb": 1}}


@pytest.fixture(scope="module")
def site(machine: Any, site_for: Any) -> Any:
    """Return a site of one host with two GPUs, the first halved and the second quartered."""
    site = site_for(machine, {"mig": {"layouts": [HALVES, MIXED]}})
    assert changed(site.run("mig"), machine) == 0, "a host without a card is none of the role's business"
    assert {result.status.value for result in site.results("mig", machine)} == {"not applicable"}
    machine.pretend_cards(["2330", "2330"])
    nvidia.nvidia_smi(machine, *TWO)
    first = site.run("mig")
    assert first.ok, first.output
    return site


def changed(run: Any, machine: Any) -> int:
    """Return how many operations changed something in a run that must succeed."""
    assert run.ok, run.output
    return int(run.changed[machine.name])


def devices(machine: Any) -> list[str]:
    """Return the profiles of all MIG devices, in nvidia-smi's order."""
    return machine.ssh("nvidia-smi -L | sed -n 's/^ *MIG \\(\\S*\\) .*/\\1/p'").stdout.split()


def test_first_run_satisfies_every_control_and_second_changes_nothing(site: Any, machine: Any) -> None:
    site.assert_controls("mig", machine)
    before = machine.ssh("nvidia-smi -L").stdout
    assert sorted(devices(machine)) == ["1g.10gb", "1g.10gb", "2g.20gb", "3g.40gb", "3g.40gb", "3g.40gb"]
    assert changed(site.run("mig"), machine) == 0
    assert machine.ssh("nvidia-smi -L").stdout == before


@pytest.mark.parametrize(
    ("breakage", "control"),
    [
        (GONE, "MIG-01"),
        (f"nvidia-smi mig -i {FIRST} -dci", "MIG-01"),
        (f"{GONE} && nvidia-smi mig -i {FIRST} -cgi 7g.80gb -C", "MIG-01"),
        ("nvidia-smi mig -dci && nvidia-smi mig -dgi && nvidia-smi -mig 0", "MIG-01"),
        ("systemctl disable gpurack-mig.service", "MIG-02"),
        ("rm /etc/systemd/system/gpurack-mig.service", "MIG-02"),
        ("sed -i s/3g.40gb/4g.40gb/ /etc/systemd/system/gpurack-mig.service", "MIG-02"),
    ],
    ids=["destroyed", "no-compute", "other-layout", "off", "unit-off", "unit-gone", "unit-other"],
)
def test_breakage_is_seen_and_repaired(site: Any, machine: Any, breakage: str, control: str) -> None:
    machine.ssh(breakage)
    assert site.failing("mig", machine) == {control}
    assert changed(site.run("mig"), machine) == 1
    site.assert_controls("mig", machine)
    assert changed(site.run("mig"), machine) == 0


def test_layout_comes_back_after_a_reboot(site: Any, machine: Any) -> None:
    """Instances are gone with the power; the unit makes them again, before Docker would start."""
    before = devices(machine)
    machine.reboot()
    machine.ssh("systemctl is-system-running --wait", check=False)
    assert devices(machine) == before
    assert "docker.service" in machine.ssh("systemctl show gpurack-mig.service --property Before").stdout
    site.assert_controls("mig", machine)
    assert changed(site.run("mig"), machine) == 0


def test_gpu_in_use_is_not_divided_anew(site: Any, machine: Any) -> None:
    busy = {"processes": [{"pid": 4711, "name": "/usr/bin/ollama"}], "mig": "Enabled"}
    nvidia.set_state(machine, gpus=[nvidia.h100(0, **busy), nvidia.h100(1, mig="Enabled")])
    assert changed(site.run("mig"), machine) == 0, "as long as it is as declared, its users do not matter"
    before = devices(machine)
    site.settings["mig"] = {"layouts": [{"gpu": FIRST, "profiles": {"7g.80gb": 1}}]}
    run = site.run("mig")
    assert not run.ok and "GPU 0 (NVIDIA H100 80GB HBM3) is in use by /usr/bin/ollama (4711)" in run.output, run.output
    assert run.operations[machine.name] == 0 and devices(machine) == before
    nvidia.set_state(machine, gpus=[nvidia.h100(0, mig="Enabled"), nvidia.h100(1, mig="Enabled")])
    assert changed(site.run("mig"), machine) == 2
    site.assert_controls("mig", machine)
    assert sorted(devices(machine)) == ["1g.10gb", "1g.10gb", "2g.20gb", "3g.40gb", "7g.80gb"], (
        "the other is left alone"
    )


@pytest.mark.parametrize(
    ("layouts", "words"),
    [
        ([{"gpu": "all", "profiles": {"3g.20gb": 2}}], "no profile 3g.20gb on this GPU; it has 1g.10gb, 1g.10gb+me"),
        ([{"gpu": "all", "profiles": {"4g.40gb": 2}}], "2 of 4g.40gb do not fit on one GPU"),
        ([{"gpu": 7, "profiles": {"3g.40gb": 2}}], "layouts name GPU 7, and this host's GPUs are 0 = GPU-00000000"),
    ],
    ids=["profile", "fit", "index"],
)
def test_layout_that_cannot_be_is_refused_before_any_change(
    site: Any, machine: Any, layouts: list[Any], words: str
) -> None:
    before, settings = devices(machine), site.settings["mig"]
    site.settings["mig"] = {"layouts": layouts}
    run = site.run("mig")
    site.settings["mig"] = settings
    assert not run.ok and words in run.output, run.output
    assert run.operations[machine.name] == 0 and devices(machine) == before


def test_card_without_mig_is_named(site: Any, machine: Any) -> None:
    settings = site.settings["mig"]
    machine.pretend_cards(["2684"])
    nvidia.set_state(machine, gpus=[nvidia.h100(0, mig="[N/A]", name="NVIDIA RTX 4090", device_id="0x268410DE")])
    site.settings["mig"] = {"layouts": [HALVES]}
    run = site.run("mig")
    assert not run.ok and "GPU 0 (NVIDIA RTX 4090) has no MIG" in run.output, run.output
    site.settings["mig"] = settings
    machine.pretend_cards(["2330", "2330"])


def test_mode_that_stays_pending_fails_with_the_cure(site: Any, machine: Any) -> None:
    nvidia.set_state(machine, gpus=[nvidia.h100(0, held=True), nvidia.h100(1)])
    site.settings["mig"] = {"layouts": [HALVES]}
    run = site.run("mig")
    assert not run.ok and "MIG does not become enabled: something holds the GPU" in run.output, run.output
    nvidia.set_state(machine, gpus=list(TWO))
    machine.ssh("rm -f /run/nvidia-double.json")
    assert changed(site.run("mig"), machine) == 2
    site.assert_controls("mig", machine)


def test_driver_that_does_not_answer_fails_with_its_words(site: Any, machine: Any) -> None:
    nvidia.set_state(machine, error="NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.")
    run = site.run("mig")
    assert not run.ok and "couldn't communicate with the NVIDIA driver" in run.output, run.output
    assert "MIG-01" in site.failing("mig", machine)
    nvidia.set_state(machine, gpus=[nvidia.h100(0, mig="Enabled"), nvidia.h100(1, mig="Enabled")])
    assert changed(site.run("mig"), machine) == 0


def test_empty_layout_undoes_everything(site: Any, machine: Any) -> None:
    site.settings["mig"] = {"layouts": [{"gpu": "all"}]}
    assert changed(site.run("mig"), machine) == 2
    assert devices(machine) == []
    modes = machine.ssh("nvidia-smi --query-gpu=mig.mode.current --format=csv,noheader").stdout.split()
    assert modes == ["Disabled", "Disabled"]
    assert machine.ssh("ls /etc/systemd/system/gpurack-mig.service", check=False).returncode != 0
    site.assert_controls("mig", machine)
    assert changed(site.run("mig"), machine) == 0
