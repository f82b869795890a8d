"""Capacity on a real host: what is read of it, and what a deploy is told before anything is pulled."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gpurack.lab import Machine
from tests.testbed import gpus
from tests.testbed.site import ROOT, Site

pytestmark = pytest.mark.host

BIN = Path(sys.executable).parent
GIB = 1024**3
MODELS = {"deepseek-r1:7b": {"parameters": {"num_ctx": 8192}}, "deepseek-r1:70b": {"parameters": {"num_ctx": 8192}}}

DEPLOY = """
import json
from pyinfra import host
from gpurack.capacity import obstacles
from gpurack.settings import settings_for
from roles.ollama.settings import OllamaSettings
from roles.ollama_models.settings import OllamaModelsSettings

models, server = settings_for(host, OllamaModelsSettings), settings_for(host, OllamaSettings)
print("OBSTACLES", json.dumps(obstacles(host, models, server)))
"""


@pytest.fixture(scope="module")
def machine(machines: Any) -> Machine:
    """Return a host with a card that its name tells nothing of the memory, and Debian's pynvml to ask the driver."""
    [fresh] = machines(release="trixie", cards=["2684"])
    return fresh  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def site(machine: Machine, site_for: Callable[..., Site]) -> Site:
    """Return the host with two models of which one is too large, and its declared hardware."""
    hardware = {"gpus": [{"card": "GeForce RTX 4090", "memory_gib": 24}], "ram_gib": 1, "disk_gib": 500}
    return site_for(
        machine,
        {
            "ollama": {"models_dir": "/srv/models/ollama"},
            "ollama_models": {"models": MODELS},
            "capacity": {"hardware": hardware, "ram_reserve_gib": 0},
        },
    )


def planned(site: Site, *arguments: str) -> dict[str, Any]:
    """Run ``gpurack capacity --json`` and return its only host."""
    line = [str(BIN / "gpurack"), "capacity", str(site.inventory()), "--json", *arguments]
    result = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == 1, result.stdout + result.stderr
    [host] = json.loads(result.stdout)["hosts"]
    return host  # type: ignore[no-any-return]


def told(site: Site, tmp_path: Path) -> tuple[list[str], str]:
    """Return the obstacles a deploy is told, and all that was printed."""
    (tmp_path / "deploy.py").write_text(DEPLOY)
    line = [str(BIN / "pyinfra"), str(site.inventory()), str(tmp_path / "deploy.py"), "-y"]
    result = subprocess.run(
        line, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=120
    )
    printed = result.stdout + result.stderr
    [line_of] = [line for line in printed.splitlines() if line.startswith("OBSTACLES ")]
    return json.loads(line_of.removeprefix("OBSTACLES ")), printed


def test_a_host_is_planned_with_what_is_there(site: Site, machine: Machine, tmp_path: Path) -> None:
    gpus.install(machine, "rtx4090")
    manifest = "/srv/models/ollama/models/manifests/registry.ollama.ai/library/deepseek-r1/7b"
    machine.ssh(f"mkdir -p {manifest.rpartition('/')[0]} && touch {manifest}")
    host = planned(site)
    hardware = host["hardware"]
    assert (hardware["source"], [gpu["memory_bytes"] for gpu in hardware["gpus"]]) == ("read", [25757220864])
    # Ollama's own process on the card is no obstacle to Ollama's models.
    assert hardware["gpus"][0]["taken_bytes"] == 0
    memory = int(machine.ssh("awk '/^MemTotal/ {print $2}' /proc/meminfo").stdout) * 1024
    free = int(machine.ssh("df --output=avail -B1 /srv | tail -n 1").stdout)
    assert hardware["ram_bytes"] == memory and hardware["disk_bytes"] == pytest.approx(free, rel=0.05)
    by_name = {model["name"]: model for model in host["models"]}
    first, second = by_name["deepseek-r1:7b"], by_name["deepseek-r1:70b"]
    assert (first["verdict"], first["reasons"], first["gpu_layers"]) == ("fits", [], [29])
    assert second["verdict"] != "fits" and second["cpu_layers"] > 20
    # The first model is on the disk already; the second is to come.
    assert host["disk_needed_bytes"] == second["weights_bytes"]
    machine.ssh("rm -r /srv/models")

    lines, _ = told(site, tmp_path)
    assert any(line.startswith("deepseek-r1:70b: ") and " of 81 layers " in line for line in lines)
    assert not any(line.startswith("deepseek-r1:7b: ") for line in lines)


def test_a_driver_that_does_not_answer_yet_is_no_obstacle(site: Site, machine: Machine, tmp_path: Path) -> None:
    gpus.install(machine, "not-loaded")
    # The name of this card does not tell its memory: what is declared stands in.
    lines, _ = told(site, tmp_path)
    assert any(line.startswith("deepseek-r1:70b: ") for line in lines)
    settings = site.settings["capacity"]
    site.settings["capacity"] = {}
    try:
        lines, printed = told(site, tmp_path)
        assert lines == [] and "models' memory is not planned: the memory of GeForce RTX 4090" in printed
    finally:
        site.settings["capacity"] = settings


def test_an_unreachable_host_is_planned_with_what_is_declared(site: Site, machine: Machine) -> None:
    original = machine.data

    def unreachable() -> dict[str, Any]:
        return {**original(), "ssh_hostname": "127.0.0.1", "ssh_port": 1}

    machine.data = unreachable  # type: ignore[method-assign]
    try:
        host = planned(site)
        assert (host["hardware"]["source"], host["hardware"]["ram_bytes"]) == ("declared", GIB)
    finally:
        machine.data = original  # type: ignore[method-assign]


def test_hardware_that_is_not_there_is_found(site: Site, machine: Machine) -> None:
    gpus.install(machine, "rtx4090")
    assert site.failing("capacity", machine) == set()
    capacity = site.settings["capacity"]
    declared = capacity["hardware"]
    wrong = (
        {**declared, "ram_gib": 60_000},
        {**declared, "gpus": [{**declared["gpus"][0], "count": 2}]},
    )
    for hardware in wrong:
        site.settings["capacity"] = {**capacity, "hardware": hardware}
        assert site.failing("capacity", machine) == {"CAP-01"}
    machine.pretend_cards(["20b0"])  # an A100 of 40 GB in place of one of 80
    site.settings["capacity"] = {
        **capacity,
        "hardware": {**declared, "gpus": [{"card": "A100 80GB", "count": 1}]},
    }
    assert site.failing("capacity", machine) == {"CAP-01"}
    site.settings["capacity"] = capacity
