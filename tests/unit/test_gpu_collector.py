"""The collector under the real pynvml, with the NVML double as its library: every scenario."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpurack.facts import gpu as facts
from gpurack.gpu.models import GpuProcess, MigInstance, NvmlReport
from tests.testbed.gpus import SCENARIOS, Scenario, build, scenario

COLLECTOR = Path(str(files("gpurack.gpu").joinpath("collector.py")))


@pytest.fixture
def collect(tmp_path: Path) -> Any:
    """Return a function that runs the fact's own command on this machine, and returns the fact."""

    def run(wanted: Scenario | str) -> NvmlReport:
        there = scenario(wanted) if isinstance(wanted, str) else wanted
        answers = tmp_path / "answers"
        answers.write_bytes(there.answers().encode("latin-1"))
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        result = subprocess.run(
            ["sh", "-c", facts.Nvml().command()],
            env={**os.environ, "PATH": path, "LD_LIBRARY_PATH": str(build().parent), "NVML_DOUBLE": str(answers)},
            capture_output=True,
            text=True,
            check=True,
        )
        return facts.Nvml().process(result.stdout.splitlines())

    return run


def test_a_consumer_card(collect: Any) -> None:
    found = collect("rtx4090")
    assert (found.source, found.error, found.driver_version, found.cuda_version) == ("nvml", "", "550.163.01", "12.4")
    [gpu] = found.gpus
    assert gpu.model_dump() == {
        "index": 0,
        "uuid": "GPU-4090aaaa-0000-4000-8000-000000000000",
        "name": "NVIDIA GeForce RTX 4090",
        "address": "0000:41:00.0",
        "memory_total_bytes": 25757220864,
        "memory_used_bytes": 5368709120,
        "utilization_percent": 37,
        "temperature_celsius": 61,
        "temperature_slowdown_celsius": 95,
        "power_watts": 287.25,
        "power_limit_watts": 450,
        "throttle_reasons": (),
        "ecc_enabled": None,
        "ecc_uncorrected": None,
        "pending_row_remap": None,
        "persistence": True,
        "mig_enabled": None,
        "mig": (),
        "nvlinks_active": None,
        "processes": ({"pid": 4711, "name": "/usr/bin/ollama", "memory_bytes": 5033164800},),
        "error": "",
    }


def test_eight_gpus_with_nvlinks(collect: Any) -> None:
    found = collect("h100x8")
    assert [gpu.index for gpu in found.gpus] == list(range(8))
    assert len({gpu.uuid for gpu in found.gpus}) == len({gpu.address for gpu in found.gpus}) == 8
    assert {(gpu.nvlinks_active, gpu.mig_enabled, gpu.ecc_uncorrected, gpu.error) for gpu in found.gpus} == {
        (18, False, 0, "")
    }
    # Idle clocks are no reason to worry.
    assert {gpu.throttle_reasons for gpu in found.gpus} == {()}


def test_mig_devices(collect: Any) -> None:
    [gpu] = collect("a100-mig").gpus
    assert gpu.mig_enabled and gpu.utilization_percent is None and gpu.nvlinks_active == 0
    assert gpu.mig == (
        MigInstance(profile="3g.20gb", uuid="MIG-a100aaaa-0000-5000-8000-000000000001", memory_bytes=20937965568),
        MigInstance(profile="4g.20gb", uuid="MIG-a100aaaa-0000-5000-8000-000000000002", memory_bytes=20937965568),
    )
    # In MIG mode the driver does not tell how much a process uses.
    assert gpu.processes == (GpuProcess(pid=812, name="/usr/bin/ollama", memory_bytes=None),)


@pytest.mark.parametrize(
    ("name", "error"), [("mismatch", "Driver/library version mismatch"), ("not-loaded", "Driver Not Loaded")]
)
def test_a_driver_that_does_not_answer(collect: Any, name: str, error: str) -> None:
    assert collect(name) == NvmlReport(source="nvml", error=error)


def test_a_lost_gpu_does_not_hide_the_others(collect: Any) -> None:
    well, lost, fell = collect("gpu-lost").gpus
    assert (well.name, well.error, well.ecc_enabled) == ("NVIDIA RTX A6000", "", False)
    assert (lost.index, lost.error, lost.uuid) == (1, "GPU is lost", "")
    # What it said before it fell silent is kept; it is not asked on.
    assert (fell.error, fell.address, fell.memory_total_bytes) == ("GPU is lost", "0000:43:00.0", 51527024640)
    assert (fell.utilization_percent, fell.temperature_celsius) == (None, None)


def test_reasons_that_cost_speed_are_named(collect: Any) -> None:
    [gpu] = collect("overheated").gpus
    assert gpu.throttle_reasons == (
        "hw_slowdown",
        "sw_thermal_slowdown",
        "hw_thermal_slowdown",
        "hw_power_brake_slowdown",
    )
    assert gpu.temperature_celsius == 97 and gpu.temperature_slowdown_celsius == 95
    # One figure is faulty; those after it are there.
    assert (gpu.error, gpu.ecc_uncorrected, gpu.persistence) == ("Unknown Error", None, False)


def test_failing_memory_of_two_generations(collect: Any) -> None:
    ampere, volta = collect("ecc-errors").gpus
    assert (ampere.ecc_enabled, ampere.ecc_uncorrected, ampere.pending_row_remap) == (True, 3, True)
    assert (volta.ecc_enabled, volta.ecc_uncorrected, volta.pending_row_remap) == (True, 1, True)


def test_a_driver_that_hangs_is_given_up(collect: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "ANSWER_SECONDS", 1)
    hanging = scenario("rtx4090")
    assert hanging.nvml is not None
    hanging.nvml["init_delay_seconds"] = 30
    assert collect(hanging).error == "no answer within 1 s"


def test_a_name_that_is_no_text_hides_nothing_else(collect: Any) -> None:
    strange = scenario("rtx4090")
    assert strange.nvml is not None
    strange.nvml["process_names"]["4711"] = "/tmp/\xff\xfe"
    [gpu] = collect(strange).gpus
    assert gpu.processes == (GpuProcess(pid=4711, memory_bytes=5033164800),) and gpu.error == ""


ERRORS = st.sampled_from(["GPU_IS_LOST", "NOT_SUPPORTED", "UNKNOWN", "NO_PERMISSION", "TIMEOUT", "RESET_REQUIRED"])
VALUES = st.one_of(
    ERRORS.map("!{}".format),
    st.integers(-(2**63), 2**64 - 1),
    st.text(st.characters(min_codepoint=33, max_codepoint=255), min_size=1, max_size=90).filter(
        lambda text: not text.startswith("!")
    ),
)
PLAIN = sorted({key for name in ("rtx4090", "h100x8", "ecc-errors") for key in scenario(name).nvml["gpus"][0]})  # type: ignore[index]
MIGS = st.lists(st.dictionaries(st.sampled_from(["name", "uuid", "memory_total", "memory_used"]), VALUES), max_size=9)
PROCESSES = st.lists(st.dictionaries(st.sampled_from(["pid", "memory"]), VALUES), max_size=5)
GPUS = st.lists(
    st.dictionaries(st.sampled_from(["handle", "retirement_pending", *PLAIN]), VALUES).flatmap(
        lambda plain: st.fixed_dictionaries({"mig": MIGS, "processes": PROCESSES}).map(lambda lists: plain | lists)
    ),
    max_size=3,
)
MACHINES = st.dictionaries(st.sampled_from(["driver_version", "cuda_driver_version", "init"]), VALUES)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(MACHINES, GPUS)
def test_no_state_of_nvml_goes_unreported(collect: Any, machine: dict[str, Any], gpus: list[dict[str, Any]]) -> None:
    found = collect(Scenario(nvml={**machine, "gpus": gpus}))
    assert found.source == "nvml" and not found.error.startswith(("the collector failed", "unreadable"))
    assert found.error or len(found.gpus) == len(gpus)


def test_every_scenario_has_a_test() -> None:
    text = Path(__file__).read_text()
    assert [name for name in SCENARIOS if f'"{name}"' not in text and name != "none"] == []


def test_without_a_library_there_is_an_error(tmp_path: Path) -> None:
    result = subprocess.run([sys.executable, "-I", str(COLLECTOR)], capture_output=True, text=True, check=True)
    found = facts.Nvml().process(result.stdout.splitlines())
    assert found.source == "nvml" and found.gpus == () and found.error


def test_the_collector_is_plain_python_3_9() -> None:
    tree = ast.parse(COLLECTOR.read_text(), feature_version=(3, 9))
    imported = {
        name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([alias.name for alias in node.names] if isinstance(node, ast.Import) else [str(node.module)])
    }
    assert {name.split(".")[0] for name in imported} - {"pynvml"} <= set(sys.stdlib_module_names)
