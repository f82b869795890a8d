"""The doctor's tests as functions of the evidence: each finds its fault, names its cause first, and nothing else."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from gpurack.doctor.cli import exit_code
from gpurack.doctor.diagnosis import NOT_APPLICABLE, Diagnosis, Finding, Outcome, all_tests, diagnose, explained
from gpurack.doctor.evidence import (
    Evidence,
    Expected,
    Unit,
)
from gpurack.doctor.examine import Examination
from gpurack.doctor.report import as_json, as_report, headline, show
from gpurack.doctor.xids import XIDS
from gpurack.gpu.models import GpuProcess, MigInstance, PciInventory
from tests.testbed.evidence import (
    CASES,
    CPU_HOST,
    GIB,
    GPU,
    HEALTHY,
    KILL,
    NO_DRIVER,
    NOW,
    SILENT,
    but,
    gpu,
    xids,
)


@pytest.mark.parametrize("name", CASES)
def test_the_cause_is_named_first(name: str) -> None:
    evidence, cause, error = CASES[name]
    diagnosis = diagnose(evidence)
    assert [finding.id for finding in diagnosis.causes] == [cause], [(f.id, f.seen) for f in diagnosis.causes]
    first = diagnosis.findings[0]
    assert (first.id, first.error) == (cause, error)
    assert first.seen and all(first.seen) and first.cure and first.why


@pytest.mark.parametrize("evidence", [HEALTHY, CPU_HOST], ids=["gpu", "cpu"])
def test_nothing_is_found_on_a_healthy_host(evidence: Evidence) -> None:
    diagnosis = diagnose(evidence)
    assert diagnosis.findings == (), [(finding.id, finding.seen) for finding in diagnosis.findings]
    assert Outcome.OK in diagnosis.outcomes.values()


def test_every_test_has_a_case() -> None:
    assert {cause for _, cause, _ in CASES.values()} == {item.id for item in all_tests()}


def test_tests_have_an_order_that_explanations_follow() -> None:
    tests = all_tests()
    ids = [item.id for item in tests]
    assert len(ids) == len(set(ids)) >= 30
    chapters = {item.chapter for item in tests}
    for number, item in enumerate(tests):
        for name in item.explains:
            if name.startswith("@"):
                assert name[1:] in chapters
            else:
                assert ids.index(name) > number, f"{item.id} explains {name}, which is tested before it"
        assert item.id not in explained(item, tests)


@pytest.mark.parametrize(
    ("part", "changes", "wrong"),
    [
        ("containers", {"containers": ()}, "ollama-down"),
        ("pci", {**NO_DRIVER, "pci": PciInventory()}, "card-missing"),
        ("kernels", {**NO_DRIVER, "kernels": (), "dkms": ()}, "driver-not-installed"),
    ],
)
def test_what_did_not_answer_is_not_missing(part: str, changes: dict[str, Any], wrong: str) -> None:
    found = {finding.id for finding in diagnose(but(**changes, unanswered=(part,))).findings}
    assert "unanswered" in found and wrong not in found
    assert wrong in {finding.id for finding in diagnose(but(**changes)).findings}


def test_gpu_tests_do_not_apply_to_a_host_that_computes_on_its_cpu() -> None:
    outcomes = diagnose(CPU_HOST).outcomes
    for item in all_tests():
        if "gpu" in item.needs:
            assert item.run(CPU_HOST) == NOT_APPLICABLE
            assert outcomes[item.id] is Outcome.NOT_APPLICABLE


def test_a_host_without_ollama_is_a_gpu_host_when_it_has_a_card() -> None:
    bare = Expected(accelerator=None, ollama=False, docker=False)
    assert but(expected=bare).gpu_expected
    assert not but(expected=bare, pci=PciInventory()).gpu_expected
    assert diagnose(but(expected=bare)).findings == ()


def test_consequences_are_listed_below_their_cause() -> None:
    evidence, _, _ = CASES["mismatch"]
    diagnosis = diagnose(evidence)
    consequences = {finding.id: finding.explained_by for finding in diagnosis.consequences}
    assert consequences == {
        "driver-silent": ("version-mismatch",),
        "cdi-stale": ("version-mismatch", "driver-silent"),
        "container-lost-gpu": ("version-mismatch", "driver-silent", "cdi-stale"),
        "ollama-on-cpu": ("version-mismatch", "driver-silent", "cdi-stale", "container-lost-gpu"),
    }


def test_the_gravest_of_independent_causes_is_first() -> None:
    evidence = but(**{**gpu(persistence=False), **SILENT}, units={"docker": Unit(name="docker")}, clock_skew=999.0)
    assert [finding.id for finding in diagnose(evidence).causes] == ["ollama-silent", "clock-wrong", "persistence-off"]


def test_an_xid_79_that_is_over_is_history() -> None:
    """The card answers again: it came back, and what is left to say is that it happened."""
    diagnosis = diagnose(but(**xids(79)))
    assert [finding.id for finding in diagnosis.findings] == ["xid-errors"]
    assert "fallen off the bus" in diagnosis.findings[0].title


@pytest.mark.parametrize("number", [13, 31, 43, 45, 48, 61, 62, 63, 64, 74, 79, 92, 94, 95, 119, 120])
def test_xid_errors_are_explained_by_number(number: int) -> None:
    [finding] = diagnose(but(**xids(number))).findings
    assert XIDS[number].meaning in finding.title and finding.severity == XIDS[number].severity


def test_an_unknown_xid_is_a_finding_too() -> None:
    [finding] = diagnose(but(**xids(999))).findings
    assert "XID 999" in finding.title


def test_the_worst_xid_decides() -> None:
    [finding] = diagnose(but(**xids(45, 13, 119, 13))).findings
    assert finding.title.startswith("XID 119") and finding.severity == "critical"
    assert any("XID 13, 2 times" in line for line in finding.seen)


def test_old_kills_are_history() -> None:
    old = KILL.model_copy(update={"time": NOW - 2 * 24 * 3600})
    assert diagnose(but(kernel_log=(old,))).findings == ()


def test_who_holds_gpu_memory_is_named() -> None:
    evidence, _, _ = CASES["GPU memory"]
    used = GPU.model_copy(update={"processes": (GpuProcess(pid=7, name="python3", memory_bytes=20 * GIB),)})
    finding = diagnose(
        evidence.model_copy(update={"nvml": HEALTHY.nvml.model_copy(update={"gpus": (used,)})})
    ).findings[0]
    assert any("process 7 python3 holds 20.0 GiB" in line for line in finding.seen)


def test_mig_devices_are_well() -> None:
    instance = MigInstance(profile="3g.20gb", uuid="MIG-1")
    assert diagnose(but(**gpu(mig_enabled=True, mig=(instance,)))).findings == ()


def test_a_power_cap_alone_is_no_fault() -> None:
    assert diagnose(but(**gpu(throttle_reasons=("sw_power_cap",)))).findings == ()


def test_cures_name_host_and_inventory() -> None:
    evidence, _, _ = CASES["no driver"]
    cure = diagnose(evidence).findings[0].cure
    assert cure == "pyinfra inventories/prod deploys/gpu.py --limit gpu1"


def test_json_has_schema_cause_and_every_test() -> None:
    evidence, cause, _ = CASES["old driver"]
    items = [Examination("gpu1", evidence, diagnose(evidence)), Examination("gpu2", error="cannot be reached")]
    document = json.loads(as_json(as_report("inventories/prod", items)))
    assert document["schema"] == "gpurack.doctor/1"
    first, second = document["hosts"]
    assert first["cause"] == cause and first["findings"][0]["error"] == "ERR_GPU"
    assert list(first["tests"]) == [item.id for item in all_tests()]
    assert (second["examined"], second["error"], second["findings"]) == (False, "cannot be reached", [])


def test_report_shows_cause_and_cure_first(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    evidence, _, _ = CASES["old driver"]
    show(Examination("gpu1", evidence, diagnose(evidence)), Console(width=200))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("gpu1: 1 finding, ")
    assert lines[1].strip().startswith("1. ERR_GPU: The driver is too old")
    assert any(line.strip().startswith("cure") for line in lines[2:6])
    assert "Consequences, gone with their cause:" in "\n".join(lines)


def test_square_brackets_of_logs_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    finding = Finding(id="x", title="[/] [bold]", severity="low", seen=("[red]line[/blue]",), cure="[c]")
    show(Examination("h", HEALTHY, Diagnosis(findings=(finding,))), Console(width=200))
    assert "[red]line[/blue]" in capsys.readouterr().out
    assert headline(finding) == "[/] [bold]"


def test_exit_codes() -> None:
    well, ill = Examination("a", HEALTHY, Diagnosis()), Examination("b", HEALTHY, diagnose(CASES["silent"][0]))
    unknown = Examination("c", error="cannot be reached")
    assert exit_code([well]) == 0
    assert exit_code([well, ill]) == 1
    assert exit_code([well, unknown]) == exit_code([ill, unknown]) == exit_code([]) == 2


def test_the_page_lists_every_test_in_order() -> None:
    page = (Path(__file__).parents[2] / "docs/doctor.md").read_text()
    table = page[page.index("## What is tested") : page.index("## What reading means")]
    ids = [item.id for item in all_tests()]
    assert [word for word in re.findall(r"`([a-z-]+)`", table) if word in ids] == ids
    assert f"{len(ids)} tests" in page
