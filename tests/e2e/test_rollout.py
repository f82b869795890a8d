"""Staged roll-out on two real hosts: a canary that holds lets the change go on, one that does not is put back."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gpurack.lab import Machine, tinymodel
from gpurack.lab.anythingllm_double import archive as anythingllm_archive
from gpurack.lab.ollama_double import VERSION, archive
from gpurack.rollout.restore_point import MODELS, POINT
from tests.testbed.anythingllm import ask, base_settings, rows
from tests.testbed.site import ROOT, Site

pytestmark = pytest.mark.host

SERVER = {
    "accelerator": "cpu",
    "health_interval": "PT1S",
    "health_start_period": "PT0S",
    "ready_timeout": "PT15S",
}
SLOW_SECONDS = "4"
LIMITS = {"first_token_ms": 3000, "tokens_per_second": 1}
ROLES = ("docker", "ollama", "ollama_models", "anythingllm")
ID = "docker container inspect --format '{{.Image}}' ollama-ollama-1"


@pytest.fixture(scope="module")
def hosts(machines: Callable[..., list[Machine]]) -> list[Machine]:
    return machines(2, release="trixie", disk_mib=3000)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return two model files."""
    folder = tmp_path_factory.mktemp("weights")
    return {name: str(tinymodel.write(folder / f"{name}.gguf", seed=seed)) for seed, name in enumerate(("a", "b"))}


def images(**faults: str) -> dict[str, Any]:
    ollama = archive(VERSION, engine=True, environment=faults)
    return {"archives": {"ollama": str(ollama), "anythingllm": str(anythingllm_archive())}}


@pytest.fixture(scope="module")
def site(
    hosts: list[Machine],
    site_for: Callable[..., Site],
    weights: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Site:
    """Return two hosts that serve one model, to one department."""
    models = {"models": {"helpdesk": {"gguf": weights["a"]}}, "acceptance": LIMITS, "disk_reserve_gib": 0}
    chat = {
        **base_settings(tmp_path_factory.mktemp("secrets")),
        "model": "helpdesk",
        "workspaces": {"legal": {"model": "helpdesk", "prompt": "Be brief."}},
    }
    settings = {"docker": {}, "ollama": dict(SERVER), "ollama_models": models, "anythingllm": chat, "images": images()}
    site = site_for(hosts, settings)
    first = site.run(*ROLES)
    assert first.ok, first.output
    return site


@pytest.fixture(autouse=True)
def settings(site: Site) -> Any:
    """Leave the settings as they were."""
    before = json.loads(json.dumps(site.settings))
    yield
    site.settings.clear()
    site.settings.update(before)


def command(site: Site, *arguments: str) -> list[str]:
    deploys = [f"deploys/{role}.py" for role in ROLES]
    program = str(Path(sys.executable).with_name("gpurack"))
    return [program, "rollout", str(site.inventory()), *deploys, "-y", *arguments]


def rollout(site: Site, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(site, *arguments),
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )


def models_of(machine: Machine) -> set[str]:
    return {
        item["name"] for item in json.loads(machine.ssh("curl -s http://127.0.0.1:11434/api/tags").stdout)["models"]
    }


def state_of(machine: Machine) -> tuple[str, set[str]]:
    """Return the image that runs and the models there are."""
    return machine.ssh(ID).stdout.strip(), models_of(machine)


def answers(machine: Machine, model: str) -> bool:
    body = json.dumps({"model": model, "prompt": "hello", "stream": False, "options": {"num_predict": 4}})
    answer = json.loads(machine.ssh(f"curl -s http://127.0.0.1:11434/api/generate -d '{body}'").stdout)
    return answer.get("eval_count", 0) > 0


def nothing_is_left(machine: Machine) -> bool:
    left = machine.ssh(f"ls -d {POINT}* /srv/ollama/{MODELS} 2>/dev/null; docker image ls -q gpurack-rollout/kept")
    return left.stdout == ""


def test_a_change_that_holds_reaches_every_host(site: Site, hosts: list[Machine], weights: dict[str, str]) -> None:
    site.settings["ollama_models"]["models"]["search"] = {"gguf": weights["b"]}
    done = rollout(site, "--json")
    assert done.returncode == 0, done.stdout
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["holds"] and [item["host"] for item in report["hosts"]] == [host.name for host in hosts]
    for item in report["hosts"]:
        assert {trial["model"] for trial in item["trials"]} == {"helpdesk:latest", "search:latest"}
        given = [answer for trial in item["trials"] for answer in trial["answers"]]
        assert len(given) == 6 and all(answer["text"] and not answer["error"] for answer in given)
        assert all(answer["tokens_per_second"] > 0 for answer in given)
    assert all(models_of(host) == {"helpdesk:latest", "search:latest"} and nothing_is_left(host) for host in hosts)
    again = site.run(*ROLES)
    assert again.ok and not any(again.changed.values()), again.output
    del site.settings["ollama_models"]["models"]["search"]
    site.settings["ollama_models"]["remove_unlisted"] = True
    assert site.run("ollama_models").ok


def test_slow_canary_is_put_back_with_the_model_it_lost(
    site: Site, hosts: list[Machine], weights: dict[str, str]
) -> None:
    """The change removes a model, brings another and a slower server; the second host never hears of it."""
    canary, other = hosts
    before = state_of(canary), state_of(other)
    site.settings["images"] = images(OLLAMA_DOUBLE_SLOW=SLOW_SECONDS)
    site.settings["ollama_models"] |= {"models": {"search": {"gguf": weights["b"]}}, "remove_unlisted": True}
    site.settings["anythingllm"] |= {
        "model": "search",
        "workspaces": {"legal": {"model": "search", "prompt": "Be long."}},
    }
    said = ask(canary, "POST", "/api/v1/workspace/legal/chat", {"message": "Before?"})
    assert said["textResponse"], said
    done = rollout(site)
    assert done.returncode == 1, done.stdout
    assert "search:latest: first token after" in done.stdout and "the limit is 3000 ms" in done.stdout, done.stdout
    assert "serves again what it served before" in done.stdout and f"not touched: {other.name}" in done.stdout
    image, models = state_of(canary)
    assert image == before[0][0] and "helpdesk:latest" in models and answers(canary, "helpdesk")
    assert models == before[0][1] and state_of(other) == before[1]
    assert nothing_is_left(canary)
    # The department is answered by the model it had, and what it had said is there.
    told = rows(canary, "SELECT chatModel, openAiPrompt FROM workspaces WHERE slug = 'legal'")
    assert told == "helpdesk|Be brief."
    said = ask(canary, "POST", "/api/v1/workspace/legal/chat", {"message": "After?"})
    assert said["textResponse"] and not said["error"], said
    assert rows(canary, "SELECT count(*) FROM workspace_chats") == "2"


def test_server_that_does_not_come_up_is_put_back(site: Site, hosts: list[Machine]) -> None:
    canary, other = hosts
    before = state_of(canary), state_of(other)
    site.settings["images"] = images(OLLAMA_DOUBLE_SLOW="not a number")
    done = rollout(site)
    assert done.returncode == 1 and "pyinfra ended with exit code 1" in done.stdout, done.stdout
    assert (state_of(canary), state_of(other)) == before
    assert answers(canary, "helpdesk") and nothing_is_left(canary)


def test_cut_off_roll_out_is_put_back_by_hand(site: Site, hosts: list[Machine]) -> None:
    """The control machine dies while the canary is tried; whoever goes on has the restore point of before."""
    canary = hosts[0]
    before = state_of(canary)
    site.settings["images"] = images(OLLAMA_DOUBLE_SLOW=SLOW_SECONDS)
    with subprocess.Popen(
        command(site), cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "asking the models" in line:
                time.sleep(1)
                process.send_signal(signal.SIGKILL)
    assert state_of(canary)[0] != before[0]
    assert "taken" not in canary.ssh(f"ls {POINT}").stdout
    again = rollout(site, "--limit", canary.name)
    assert again.returncode == 1 and "an unfinished roll-out left its restore point" in again.stdout, again.stdout
    assert state_of(canary) == before and answers(canary, "helpdesk")

    nothing = rollout(site, "--roll-back")
    assert nothing.returncode == 1 and "there is no restore point" in nothing.stdout, nothing.stdout


def test_unreachable_canary_changes_nothing(site: Site, hosts: list[Machine]) -> None:
    before = state_of(hosts[1])
    hosts[0].kill()
    try:
        done = rollout(site)
    finally:
        hosts[0].start()
    assert done.returncode == 1 and f"not touched: {hosts[1].name}" in done.stdout, done.stdout
    assert state_of(hosts[1]) == before


def test_unknown_canary_is_refused(site: Site) -> None:
    done = rollout(site, "--canary", "gpu9")
    assert done.returncode == 2 and "no host gpu9 in the inventory" in done.stdout
