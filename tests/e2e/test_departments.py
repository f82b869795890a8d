"""Two bare hosts, one command: departments have workspaces that answer from declared models, run by a real engine."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gpurack.lab import Machine, tinymodel
from gpurack.lab.ollama_double import archive as ollama_archive
from tests.testbed.anythingllm import ask, images, secret, site_settings
from tests.testbed.site import Site

pytestmark = pytest.mark.host


def settings(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the stack's settings: two models of local files, one for all departments, one for legal alone."""
    files = {name: str(tinymodel.write(folder / name, seed=seed)) for seed, name in enumerate(("common", "counsel"))}
    stack = site_settings(folder)
    stack["images"] = {**images(), "archives": {**images()["archives"], "ollama": str(ollama_archive(engine=True))}}
    stack["ollama_models"] = {
        "models": {name: {"gguf": file} for name, file in files.items()},
        "disk_reserve_gib": 0,
    }
    stack["anythingllm"] |= {"model": "common"}
    stack["anythingllm"]["workspaces"]["legal"]["model"] = "counsel"
    return stack


def test_departments_are_answered_and_a_second_run_changes_nothing(
    machines: Callable[..., list[Machine]], site_for: Callable[..., Site], tmp_path: Path
) -> None:
    pair = machines(2, release="bookworm")
    site = site_for(pair, settings(tmp_path))
    # One host has a department more than the other: what is said of a host alone is merged.
    people = {"users": {"kim": {"password": secret(tmp_path, "kim")}}}
    extra = {pair[1].name: {"anythingllm": {**people, "workspaces": {"research": {"members": ["kim"]}}}}}
    roles = ("docker", "ollama", "ollama_models", "anythingllm")
    first = site.run(*roles, data=extra)
    assert first.ok, first.output
    slugs = [{item["slug"] for item in ask(machine, "GET", "/api/v1/workspaces")["workspaces"]} for machine in pair]
    assert slugs == [{"legal", "sales"}, {"legal", "sales", "research"}]
    for machine, names in zip(pair, slugs, strict=True):
        for slug in sorted(names):
            model = "counsel:latest" if slug == "legal" else "common:latest"
            before = loaded(machine)
            answer = ask(machine, "POST", f"/api/v1/workspace/{slug}/chat", {"message": f"Who answers {slug}?"})
            assert answer["textResponse"] and not answer["error"], answer
            assert loaded(machine) - before <= {model} <= loaded(machine)
    second = site.run(*roles, data=extra)
    assert second.ok and not any(second.changed.values()), second.output


def loaded(machine: Machine) -> set[str]:
    """Return the models in memory, which are those that were asked."""
    answer = machine.ssh("curl -sS http://127.0.0.1:11434/api/ps").stdout
    return {model["name"] for model in json.loads(answer)["models"]}
