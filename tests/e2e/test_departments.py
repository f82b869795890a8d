"""Two bare hosts, one command: departments have workspaces that answer from a declared model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from gpurack.lab import Machine
from tests.testbed.anythingllm import ask, secret, site_settings
from tests.testbed.site import Site

pytestmark = pytest.mark.host


def test_departments_are_answered_and_a_second_run_changes_nothing(
    machines: Callable[..., list[Machine]], site_for: Callable[..., Site], tmp_path: Path
) -> None:
    pair = machines(2, release="bookworm")
    site = site_for(pair, site_settings(tmp_path))
    # One host has a department more than the other: what is said of a host alone is merged.
    people = {"users": {"kim": {"password": secret(tmp_path, "kim")}}}
    extra = {pair[1].name: {"anythingllm": {**people, "workspaces": {"research": {"members": ["kim"]}}}}}
    first = site.run("docker", "ollama", "anythingllm", data=extra)
    assert first.ok, first.output
    slugs = [{item["slug"] for item in ask(machine, "GET", "/api/v1/workspaces")["workspaces"]} for machine in pair]
    assert slugs == [{"legal", "sales"}, {"legal", "sales", "research"}]
    for machine, names in zip(pair, slugs, strict=True):
        for slug in names:
            answer = ask(machine, "POST", f"/api/v1/workspace/{slug}/chat", {"message": f"Who answers {slug}?"})
            assert answer["textResponse"].startswith("This is the gpurack test double of Ollama"), answer
            assert answer["textResponse"].endswith(f"Who answers {slug}?")
    second = site.run("docker", "ollama", "anythingllm", data=extra)
    assert second.ok and not any(second.changed.values()), second.output
