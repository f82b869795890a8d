"""``gpurack capacity`` on inventories whose hardware is declared: nothing is connected to."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from pyinfra.api.host import Host

from gpurack.cli import main

Run = Callable[..., Result]

HOSTS = """
l4 = {"hardware": {"gpus": [{"card": "L4 24GB", "count": 1}], "ram_gib": 64, "disk_gib": 200}}
gpu = [
    ("gpu1", {"capacity": l4}),
    ("gpu2", {"capacity": l4, "ollama_models": {"models": {"deepseek-r1:70b": {}}}}),
]
cpu = [("cpu1", {"capacity": {"hardware": {"ram_gib": 16}}, "ollama": {"accelerator": "cpu"}})]
"""
ALL = """
ollama = {"context_length": 8192, "num_parallel": 2}
ollama_models = {"models": {"deepseek-r1:7b": {"preload": True}, "nomic-embed-text": {"preload": True}}}
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Return a function that runs the command on an inventory; connecting is an error."""

    def refuse(self: Host, *args: Any, **options: Any) -> None:
        raise AssertionError(f"{self.name} was connected to")

    monkeypatch.setattr(Host, "connect", refuse)
    monkeypatch.chdir(Path(__file__).parents[2])

    def command(*arguments: str, hosts: str = HOSTS, everywhere: str = ALL) -> Result:
        monkeypatch.setattr("pyinfra_cli.util.PYTHON_CODES", {})  # pyinfra's cache of files, by name
        (tmp_path / "group_data").mkdir(exist_ok=True)
        (tmp_path / "hosts.py").write_text(hosts)
        (tmp_path / "group_data/all.py").write_text(everywhere)
        return CliRunner().invoke(main, ["capacity", str(tmp_path), "--hardware", "declared", *arguments])

    return command


def test_everything_that_fits_is_exit_code_0(run: Run) -> None:
    result = run("--limit", "gpu1", "--limit", "cpu")
    assert result.exit_code == 0, result.output
    assert "gpu1 (declared): 1 x L4 24GB 24.0 GiB; 64.0 GiB of RAM, 200.0 GiB of disk free" in result.output
    row = next(line for line in result.output.splitlines() if line.startswith("deepseek-r1:7b"))
    wanted = "deepseek-r1:7b Q4_K_M 4.4 GiB 8192 x 2 896 MiB f16 336 MiB 29 layers 5.7 GiB 292 MiB fits"
    assert " ".join(row.split()) == wanted
    assert "nomic-embed-text:latest  F16" in result.output and "cpu1 (declared): no GPU" in result.output
    assert "29 layers 5.6 GiB" in result.output


def test_what_does_not_fit_is_exit_code_1_with_reason_and_cure(run: Run) -> None:
    result = run("--limit", "gpu2")
    assert result.exit_code == 1
    assert "deepseek-r1:70b" in result.output and "fits with a change" in result.output
    assert "layers" in result.output and "would be computed by the CPU" in result.output
    assert "more than 80 % of the 16.2 GiB that resident models leave free" in result.output
    assert "deepseek-r1:70b: fits with the model deepseek-r1:14b in its place" in result.output
    assert "deepseek-r1:70b: or with 2 more GPUs like L4 24GB" in result.output


def test_json_has_every_figure_in_bytes(run: Run) -> None:
    result = run("--json", "--people", "5")
    found = json.loads(result.output)
    assert (found["schema"], [host["host"] for host in found["hosts"]]) == (
        "gpurack.capacity/1",
        ["gpu1", "gpu2", "cpu1"],
    )
    first = found["hosts"][0]
    assert first["fits"] and first["disk_needed_bytes"] == sum(model["weights_bytes"] for model in first["models"])
    seven = first["models"][0]
    assert seven["cache_bytes"] == 2 * 28 * 4 * 128 * 8192 * 2 * 2 and seven["gpu_layers"] == [29]
    assert seven["source"].endswith("DeepSeek-R1-Distill-Qwen-7B")
    assert first["recommendation"]["name"] == "deepseek-r1:7b" and len(found["planning_table"]) == 6
    assert not found["hosts"][1]["fits"] and found["hosts"][1]["models"][2]["changes"]


def test_people_are_given_a_model_and_the_sources_table(run: Run) -> None:
    result = run("--limit", "gpu1", "--people", "40")
    assert "for 40 people, 4 at once, 8192 tokens each: deepseek-r1:14b" in result.output
    assert "4x RTX 4090" in result.output and "own, Q4_K_M" in result.output


def test_unknown_models_and_missing_hardware_are_said(run: Run) -> None:
    hosts = 'gpu = [("gpu1", {"ollama_models": {"models": {"mystery": {}}}, "capacity": {"hardware": {"ram_gib": 8}}})]'
    result = run(hosts=hosts, everywhere="")
    assert result.exit_code == 1 and "mystery:latest is not in gpurack's catalogue" in result.output
    result = run(hosts='gpu = [("gpu1", {})]', everywhere="")
    assert result.exit_code == 1 and "gpu1: cannot be planned: no hardware is declared" in result.output


def test_a_damaged_file_is_named_without_a_traceback(run: Run, tmp_path: Path) -> None:
    (tmp_path / "own.gguf").write_bytes(b"GGUF\x03")
    text = f'ollama_models = {{"models": {{"own": {{"gguf": "{tmp_path}/own.gguf"}}}}}}'
    result = run("--limit", "gpu1", everywhere=text)
    assert result.exit_code == 2 and "own.gguf" in result.output and "copy it again" in result.output
    assert "Traceback" not in result.output


def test_wrong_settings_and_limits_are_refused(run: Run) -> None:
    hosts = 'gpu = [("gpu1", {"capacity": {"hardware": {"gpus": [{"card": "RTX 4090"}], "ram_gib": 8}}})]'
    result = run(hosts=hosts)
    assert result.exit_code == 2 and "does not tell the card's memory; give it" in result.output
    result = run("--limit", "nobody")
    assert result.exit_code == 2 and "no host or group nobody" in result.output


def test_a_host_without_the_role_is_planned_without_models(run: Run) -> None:
    result = run("--limit", "cpu1", everywhere='ollama_models = {"enabled": False, "models": {"deepseek-r1:7b": {}}}')
    assert result.exit_code == 0 and "no models are declared" in result.output
