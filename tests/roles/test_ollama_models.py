"""The ollama_models role on a real host: models pulled from the registry double, made and run by a real engine."""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gpurack.lab import network, tinymodel
from gpurack.lab.ollama_double import archive
from tests.testbed.registry import Registry
from tests.testbed.site import ROOT

pytestmark = pytest.mark.host

STORE = "/srv/ollama/models"


@pytest.fixture(scope="module")
def release() -> str:
    """One release: what the role does is done by Ollama, in a container."""
    return "trixie"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Return the content of some model files."""
    folder = tmp_path_factory.mktemp("weights")
    sizes = {"one": (1, 128), "two": (2, 128), "three": (3, 128), "large": (4, 8192)}
    return {
        name: tinymodel.write(folder / name, seed=seed, feed_forward=wide).read_bytes()
        for name, (seed, wide) in sizes.items()
    }


@pytest.fixture(scope="module")
def registry(machine: Any, tmp_path_factory: pytest.TempPathFactory, weights: Any) -> Iterator[Registry]:
    """Run a registry that hosts reach; the machine's fixture has made the network."""
    with Registry(tmp_path_factory.mktemp("registry"), f"{network.PREFIX}.1") as running:
        running.publish("library/one:1", weights["one"], {"temperature": 0.5})
        running.publish("library/two:1", weights["two"])
        running.publish("library/large:1", weights["large"])
        yield running


@pytest.fixture(scope="module")
def site(machine: Any, site_for: Any, registry: Registry) -> Any:
    """Return a site of one host with Ollama running, and no model declared."""
    server = {
        "accelerator": "cpu",
        "health_interval": "PT1S",
        "health_start_period": "PT0S",
        "ready_timeout": "PT40S",
    }
    # A small disk of its own, which a test can fill.
    machine.ssh("mkdir -p /srv/ollama && mount -t tmpfs -o size=60m tmpfs /srv/ollama")
    return site_for(
        machine,
        {
            "images": {"archives": {"ollama": str(archive(engine=True))}},
            "docker": {},
            "ollama": server,
            "ollama_models": {},
        },
    )


def declare(site: Any, registry: Registry, models: dict[str, Any], **values: Any) -> None:
    """Declare models; names begin with the registry unless they have a dot."""
    site.settings["ollama_models"] = {
        "models": models,
        "insecure_registries": [registry.host],
        "disk_reserve_gib": 0,
        "capacity": "warn",
        **values,
    }


def changed(run: Any, machine: Any) -> int:
    """Return how many operations changed something in a run that must succeed."""
    assert run.ok, run.output
    return int(run.changed[machine.name])


def api(machine: Any, path: str, body: Any = None) -> Any:
    """Ask Ollama on the host; several documents are a list."""
    data = f" -d '{json.dumps(body)}'" if body is not None else ""
    lines = machine.ssh(f"curl -sN --max-time 60 http://127.0.0.1:11434{path}{data}").stdout.splitlines()
    documents = [json.loads(line) for line in lines]
    return documents[0] if len(documents) == 1 else documents


def names(machine: Any) -> set[str]:
    """Return the names of the models on the host."""
    return {model["name"] for model in api(machine, "/api/tags")["models"]}


def serves(machine: Any, name: str) -> bool:
    """Tell whether a model answers; what it says is noise, the end of the answer may be its first word."""
    answer = api(machine, "/api/generate", {"model": name, "prompt": "hello", "options": {"num_predict": 4}})
    last = answer[-1] if isinstance(answer, list) else answer
    return bool(last.get("eval_count"))


def wait_for_bytes(registry: Registry, count: int) -> None:
    """Wait until the registry has sent so many bytes."""
    deadline = time.monotonic() + 60
    while registry.served < count:
        assert time.monotonic() < deadline, "nothing is pulled"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def one(registry: Registry) -> str:
    """Name of a model that is pulled, and has parameters of its own."""
    return f"{registry.host}/library/one:1"


@pytest.fixture(scope="module")
def two(registry: Registry) -> str:
    """Name of a model that is only pulled."""
    return f"{registry.host}/library/two:1"


@pytest.fixture(scope="module")
def large(registry: Registry) -> str:
    """Name of a model of 12 MB, declared by single tests."""
    return f"{registry.host}/library/large:1"


@pytest.fixture
def base(site: Any, registry: Registry, one: str, two: str, digest_of_one: str) -> dict[str, Any]:
    """Declare what the host has between tests, and return it."""
    models: dict[str, Any] = {
        one: {"digest": digest_of_one, "parameters": {"num_ctx": 512, "stop": ["x y"]}, "system": "You are terse."},
        two: {},
        "accounting": {"base": two, "parameters": {"temperature": 0.1, "num_predict": 16}, "preload": True},
    }
    registry.fault()
    declare(site, registry, models, parallel_pulls=2)
    return models


@pytest.fixture(scope="module")
def digest_of_one(registry: Registry, weights: Any) -> str:
    """Return the digest of the model as it was published."""
    return registry.publish("library/one:1", weights["one"], {"temperature": 0.5})


def test_declared_models_are_there_and_answer(site: Any, machine: Any, base: Any, one: str, two: str) -> None:
    first = site.run("docker", "ollama", "ollama_models")
    assert first.ok, first.output
    assert {one, two, "accounting:latest"} <= names(machine)
    site.assert_controls("ollama_models", machine)
    assert changed(site.run("ollama", "ollama_models"), machine) == 0


def test_answers_are_the_engines(machine: Any, one: str) -> None:
    answer = api(machine, "/api/generate", {"model": one, "prompt": "hello", "options": {"num_predict": 8, "seed": 1}})
    assert answer[-1]["eval_count"] == 8 and answer[-1]["eval_duration"] > 0 and len(answer) > 3
    body = {
        "model": one,
        "messages": [{"role": "user", "content": "hi"}],
        "stream": False,
        "options": {"num_predict": 4},
    }
    assert api(machine, "/api/chat", body)["eval_count"] == 4
    found = api(machine, "/api/embed", {"model": one, "input": ["hello", "other"]})["embeddings"]
    assert len(found) == 2 and len(found[0]) == tinymodel.EMBEDDING and found[0] != found[1]
    text = api(
        machine, "/v1/chat/completions", {"model": one, "max_tokens": 4, "seed": 1, "messages": body["messages"]}
    )
    assert text["usage"]["completion_tokens"] == 4
    assert [model["name"] for model in api(machine, "/api/ps")["models"] if model["expires_at"] > "2100"] == [
        "accounting:latest"
    ]


POST = "curl -sf http://127.0.0.1:11434/api"
BREAKAGES = {
    "deleted": ("""{post}/delete -X DELETE -d '{{"model":"accounting"}}'""", {"OLLM-01"}),
    "base-deleted": ("""{post}/delete -X DELETE -d '{{"model":"{two}"}}'""", {"OLLM-01", "OLLM-04"}),
    "cut-blob": ("truncate -s -1 $(ls -S {store}/blobs/sha256-* | head -n 1)", {"OLLM-01", "OLLM-02"}),
    "other-parameters": (
        """{post}/create -d '{{"model":"accounting","from":"{two}","parameters":{{"temperature":0.9}}}}'""",
        {"OLLM-03", "OLLM-04", "OLLM-07"},
    ),
    "other-version": (
        """{post}/copy -d '{{"source":"{two}","destination":"base-of.{one}"}}'""",
        {"OLLM-02", "OLLM-04"},
    ),
    "unloaded": ("""{post}/generate -d '{{"model":"accounting","keep_alive":0}}'""", {"OLLM-07"}),
}


@pytest.mark.parametrize("name", BREAKAGES)
def test_breakage_is_seen_and_repaired(site: Any, machine: Any, base: Any, one: str, two: str, name: str) -> None:
    breakage, controls = BREAKAGES[name]
    machine.ssh(breakage.format(post=POST, one=one, two=two, store=STORE))
    found = site.failing("ollama_models", machine)
    assert controls <= found and found <= controls | {"OLLM-04", "OLLM-07"}, found
    assert changed(site.run("ollama_models"), machine) > 0
    site.assert_controls("ollama_models", machine)
    assert serves(machine, "accounting") and serves(machine, one)


def test_unlisted_models_are_reported_and_removed_only_when_allowed(
    site: Any, machine: Any, registry: Registry, base: Any, two: str
) -> None:
    machine.ssh(f"""{POST}/copy -d '{{"source":"{two}","destination":"somebodys:1"}}'""")
    run = site.run("ollama_models")
    assert changed(run, machine) == 0 and "models that are not declared: somebodys:1 (" in run.output, run.output
    declare(site, registry, {name: model for name, model in base.items() if name != "accounting"})
    assert changed(site.run("ollama_models"), machine) == 0 and "accounting:latest" in names(machine)
    declare(site, registry, {"somebodys:1": {}, **base}, remove_unlisted=True)
    assert changed(site.run("ollama_models"), machine) == 0
    declare(site, registry, base, remove_unlisted=True)
    assert site.failing("ollama_models", machine) == {"OLLM-05"}
    before = names(machine)
    assert changed(site.run("ollama_models"), machine) == 1
    assert before - names(machine) == {"somebodys:1"} and names(machine) <= before
    site.assert_controls("ollama_models", machine)


def gpurack(site: Any, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run ``gpurack models COMMAND`` on the site."""
    command = [str(Path(sys.executable).with_name("gpurack")), "models", arguments[0], str(site.inventory())]
    return subprocess.run([*command, *arguments[1:]], cwd=ROOT, capture_output=True, text=True, timeout=60)


def test_models_are_listed_and_a_corrupt_file_is_found_with_its_cure(
    site: Any, machine: Any, registry: Registry, base: Any, one: str, two: str, weights: Any
) -> None:
    listed = {row["model"]: row for row in json.loads(gpurack(site, "list", "--json").stdout)}
    assert listed["accounting:latest"]["declared"] == "declared" and listed["accounting:latest"]["loaded"] == "for ever"
    assert listed[f"base-of.{one}"]["declared"] == "base" and listed[two]["digest"].startswith("sha256:")
    fine = gpurack(site, "verify")
    assert fine.returncode == 0 and "all have their digest" in fine.stdout, fine.stdout + fine.stderr
    blob = f"{STORE}/blobs/sha256-{hashlib.sha256(weights['two']).hexdigest()}"
    machine.ssh(f"printf x | dd of={blob} bs=1 seek=400000 conv=notrunc 2>/dev/null")
    wrong = gpurack(site, "verify")
    assert wrong.returncode == 1 and f"corrupt: {blob} has SHA-256" in wrong.stdout, wrong.stdout
    assert f"it belongs to {two}, accounting:latest" in wrong.stdout and f"cure: rm {blob}" in wrong.stdout, (
        wrong.stdout
    )
    machine.ssh(f"rm {blob}")
    assert changed(site.run("ollama_models"), machine) > 0
    assert gpurack(site, "verify").returncode == 0
    site.assert_controls("ollama_models", machine)


def test_an_absent_model_goes_with_its_blobs_and_out_of_memory(
    site: Any, machine: Any, registry: Registry, base: Any, large: str
) -> None:
    declare(site, registry, {**base, large: {"preload": True}})
    assert changed(site.run("ollama_models"), machine) == 2
    assert machine.ssh(f"find {STORE}/blobs -size +10M").stdout
    declare(site, registry, {**base, large: {"state": "absent"}})
    assert site.failing("ollama_models", machine) == {"OLLM-05"}
    assert changed(site.run("ollama_models"), machine) == 1
    assert not machine.ssh(f"find {STORE}/blobs -size +10M").stdout
    assert large not in {model["name"] for model in api(machine, "/api/ps")["models"]}


def test_the_reserve_is_kept_before_the_first_byte(
    site: Any, machine: Any, registry: Registry, base: Any, large: str
) -> None:
    before = registry.served
    declare(site, registry, {**base, large: {}}, disk_reserve_gib=50_000)
    run = site.run("ollama_models")
    assert not run.ok and run.operations[machine.name] == 0, run.output
    assert "too little room at /srv/ollama:" in run.output and "12.3 MiB" in run.output, run.output
    assert registry.served == before
    assert site.failing("ollama_models", machine) >= {"OLLM-06"}


REFUSALS = {
    "absent": ({"manifests_status": 404}, "the registry has no such model"),
    "login": ({"manifests_status": 401}, "the registry wants a login"),
    "too-often": ({"manifests_status": 429}, "lets nobody pull that often"),
    "corrupt": ({"corrupt": True}, "what came twice is not what the registry's manifest says"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_a_registry_refuses_is_said_and_changes_nothing(
    site: Any, machine: Any, registry: Registry, base: Any, one: str, large: str, name: str
) -> None:
    fault, words = REFUSALS[name]
    registry.fault(**fault)
    before = names(machine)
    declare(site, registry, {**base, large: {}})
    run = site.run("ollama_models")
    assert not run.ok and words in run.output and large in run.output, run.output
    assert names(machine) == before and serves(machine, one)


def test_another_digest_than_the_pinned_one_is_refused(
    site: Any, machine: Any, registry: Registry, base: Any, two: str
) -> None:
    declare(site, registry, {**base, two: {"digest": "0" * 64}})
    run = site.run("ollama_models")
    assert not run.ok and run.operations[machine.name] == 0
    assert "its registry serves sha256:" in run.output and serves(machine, two), run.output


def test_a_pull_that_is_cut_again_and_again_goes_on_where_it_was(
    site: Any, machine: Any, registry: Registry, base: Any, large: str, weights: Any
) -> None:
    """Ollama gives up after six cuts, and the run asks it again: twelve cuts, and no byte is fetched twice."""
    registry.fault(cut_after=len(weights["large"]) // 12)
    before = registry.served
    declare(site, registry, {**base, large: {}})
    assert changed(site.run("ollama_models"), machine) == 1
    assert registry.served - before < len(weights["large"]) * 1.01
    machine.ssh(f"cd {STORE}/blobs && for f in sha256-*; do echo ${{f#sha256-}} $f; done | sha256sum --check --quiet")
    assert serves(machine, large)
    remove(site, registry, base, large)


def remove(site: Any, registry: Registry, base: Any, name: str) -> None:
    """Take a model away again."""
    registry.fault()
    declare(site, registry, {**base, name: {"state": "absent"}})
    assert site.run("ollama_models").ok


def test_a_killed_run_and_a_full_disk_leave_what_came(
    site: Any, machine: Any, registry: Registry, base: Any, one: str, large: str, weights: Any
) -> None:
    registry.fault(bytes_per_second=3_000_000)
    declare(site, registry, {**base, large: {}})
    before = registry.served
    process = site.start("ollama_models")
    wait_for_bytes(registry, before + 2_000_000)
    process.kill()
    process.wait()
    room = f"{STORE}/../room"
    started = registry.served
    process = site.start("ollama_models")
    wait_for_bytes(registry, started + 1_000_000)
    machine.ssh(f"cp /dev/zero {room} 2>/dev/null; true")
    output = process.communicate(timeout=120)[0]
    machine.ssh(f"rm -f {room}")
    assert process.returncode and "the disk is full; what has come is kept" in output, output
    assert serves(machine, one)
    registry.fault()
    assert changed(site.run("ollama_models"), machine) == 1
    assert registry.served - before < len(weights["large"]) * 1.3
    assert serves(machine, large)
    remove(site, registry, base, large)


def test_a_restart_of_ollama_in_the_middle_is_waited_for(
    site: Any, machine: Any, registry: Registry, base: Any, large: str
) -> None:
    registry.fault(bytes_per_second=4_000_000)
    declare(site, registry, {**base, large: {}})
    before = registry.served
    process = site.start("ollama_models")
    wait_for_bytes(registry, before + 3_000_000)
    machine.ssh("docker restart --time 1 ollama-ollama-1")
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 0, output
    registry.fault()
    site.assert_controls("ollama_models", machine)
    remove(site, registry, base, large)


def test_a_model_is_made_of_a_local_file(
    site: Any, machine: Any, registry: Registry, base: Any, weights: Any, tmp_path: Path
) -> None:
    """The copy goes on from a beginning that is on the host, if it is this file's."""
    file = tmp_path / "own.gguf"
    file.write_bytes(weights["three"])
    digest = hashlib.sha256(weights["three"]).hexdigest()
    part = f"{STORE}/upload/{digest}.part"
    for beginning in (weights["three"][:20_000], b"something else"):
        machine.ssh(f"install -d -m 700 {STORE}/upload")
        machine.ssh(f"base64 -d >{part} <<'END'\n{base64.b64encode(beginning).decode()}\nEND")
        declare(site, registry, {**base, "own": {"gguf": str(file), "parameters": {"num_predict": 8}}})
        assert changed(site.run("ollama_models"), machine) == 1
        assert serves(machine, "own")
        assert changed(site.run("ollama_models"), machine) == 0
        site.assert_controls("ollama_models", machine)
        assert not machine.ssh(f"ls {STORE}/upload; ls {STORE}/blobs | grep {digest} || true").stdout
        remove(site, registry, base, "own")


def test_a_file_that_is_no_whole_model_opens_no_connection(
    site: Any, registry: Registry, base: Any, weights: Any, tmp_path: Path
) -> None:
    (tmp_path / "cut.gguf").write_bytes(weights["three"][:-1])
    tinymodel.write(tmp_path / "odd.gguf", architecture="lama")
    declare(site, registry, {"cut": {"gguf": str(tmp_path / "cut.gguf")}})
    run = site.run("ollama_models")
    assert run.returncode == 2 and "cut.gguf is cut short" in run.output and "Connected" not in run.output, run.output
    declare(site, registry, {"odd": {"gguf": str(tmp_path / "odd.gguf")}})
    run = site.run("ollama_models")
    assert run.returncode == 2 and "which llama.cpp does not know; did it mean llama?" in run.output, run.output
