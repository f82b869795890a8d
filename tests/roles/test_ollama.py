"""The ollama role on real hosts of each supported release, with the double in place of the real image.

There is no GPU here: the GPU profile is checked as far as Compose reads the file. A container that gets a device is in
test_container_toolkit.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gpurack.gpu.runtime import Mode, reservation
from gpurack.lab.ollama_double import MODEL, archive
from gpurack.rendering import render
from roles.ollama.settings import OllamaSettings

pytestmark = pytest.mark.host

COMPOSE = "/etc/gpurack/compose/ollama/compose.yaml"
ASK = json.dumps({"model": MODEL, "prompt": "Who answers?"})


def base_settings() -> dict[str, Any]:
    """Return settings for a host without a GPU, with short health checks."""
    return {
        "accelerator": "cpu",
        "health_interval": "PT1S",
        "health_start_period": "PT0S",
        "ready_timeout": "PT40S",
    }


def images(version: str = "0.32.15") -> dict[str, Any]:
    """Return the site's source of images: the double's archive, of another release if asked for."""
    return {"archives": {"ollama": str(archive(version))}, "overrides": {"ollama": {"tag": version}}}


@pytest.fixture(scope="module")
def site(machine: Any, site_for: Any) -> Any:
    """Return a site of one host whose first run brought up the service."""
    site = site_for(machine, {"docker": {}, "ollama": base_settings(), "images": images()})
    first = site.run("docker", "ollama")
    assert first.ok, first.output
    return site


def changed(run: Any, machine: Any) -> int:
    """Return how many operations changed something in a run that must succeed."""
    assert run.ok, run.output
    return int(run.changed[machine.name])


def container_id(machine: Any) -> str:
    """Return the ID of the service's container."""
    return machine.ssh("docker ps --all --quiet --no-trunc --filter name=ollama-ollama-1").stdout.strip()


def test_first_run_satisfies_every_control_and_second_changes_nothing(site: Any, machine: Any) -> None:
    site.assert_controls("ollama", machine)
    before = container_id(machine)
    assert changed(site.run("docker", "ollama"), machine) == 0
    assert container_id(machine) == before


def test_a_question_is_answered_as_a_stream(site: Any, machine: Any) -> None:
    answer = machine.ssh(f"curl -sN --max-time 10 http://127.0.0.1:11434/api/generate -d '{ASK}'").stdout
    parts = [json.loads(line) for line in answer.splitlines()]
    assert len(parts) > 5 and [part["done"] for part in parts].count(True) == 1 and parts[-1]["done"]
    text = "".join(part["response"] for part in parts)
    assert "test double" in text and text.endswith("Who answers?")


def test_nothing_of_the_upload_is_left(site: Any, machine: Any) -> None:
    assert machine.ssh("ls /var/lib/gpurack/upload").stdout == ""
    assert machine.ssh("stat -c %a /var/lib/gpurack/upload").stdout.strip() == "700"


UP = f"docker compose --file {COMPOSE} up --detach --wait"
BREAKAGES = {
    "removed": ("docker rm --force ollama-ollama-1", {"OLLA-01", "OLLA-02"}),
    "stopped": ("docker stop --time 1 ollama-ollama-1", {"OLLA-01", "OLLA-02"}),
    "paused": ("docker pause ollama-ollama-1", {"OLLA-01", "OLLA-02"}),
    "published-wide-and-cloud": (
        "sed -i -e 's/127.0.0.1:11434:11434/0.0.0.0:11434:11434/' -e 's/OLLAMA_NO_CLOUD: .*/OLLAMA_NO_CLOUD: \"0\"/' "
        f"{COMPOSE} && {UP}",
        {"OLLA-04", "OLLA-05", "OLLA-06", "OLLA-10"},
    ),
    "capability": (
        f"sed -i 's/    security_opt:/    cap_add: [SYS_ADMIN]\\n    security_opt:/' {COMPOSE} && {UP}",
        {"OLLA-08"},
    ),
    "file-only": (f"sed -i 's/OLLAMA_NUM_PARALLEL: .*/OLLAMA_NUM_PARALLEL: \"9\"/' {COMPOSE}", {"OLLA-10"}),
    "off-the-network": ("docker network disconnect gpurack ollama-ollama-1", {"OLLA-11"}),
    "modes": (f"chmod 644 {COMPOSE} && chmod 755 /srv/ollama", {"OLLA-07", "OLLA-10"}),
    "other-image": (
        "docker tag ollama/ollama:0.32.15 kept:1 && docker image rm --no-prune ollama/ollama:0.32.15",
        {"OLLA-03"},
    ),
}


@pytest.mark.parametrize("name", BREAKAGES)
def test_breakage_is_seen_and_repaired(site: Any, machine: Any, name: str) -> None:
    breakage, controls = BREAKAGES[name]
    machine.ssh(breakage)
    assert controls <= site.failing("ollama", machine)
    assert changed(site.run("ollama"), machine) > 0
    site.assert_controls("ollama", machine)


def test_nothing_is_left_to_repair(site: Any, machine: Any) -> None:
    assert changed(site.run("ollama"), machine) == 0


def test_a_setting_recreates_the_ollama_container_alone(site: Any, machine: Any) -> None:
    machine.ssh("docker run --detach --name bystander --entrypoint /bin/ollama ollama/ollama:0.32.15 serve")
    bystander = machine.ssh("docker inspect --format '{{.State.StartedAt}}' bystander").stdout
    before = container_id(machine)
    site.settings["ollama"] = {**base_settings(), "context_length": 4096, "models_dir": "/srv/models"}
    assert changed(site.run("docker", "ollama"), machine) == 2
    site.assert_controls("ollama", machine)
    assert container_id(machine) != before
    assert machine.ssh("docker inspect --format '{{.State.StartedAt}}' bystander").stdout == bystander
    machine.ssh("docker rm --force bystander")
    assert changed(site.run("docker", "ollama"), machine) == 0


def test_the_service_outlives_a_restart_of_the_daemon(site: Any, machine: Any) -> None:
    started = "docker inspect --format '{{.State.StartedAt}}' ollama-ollama-1"
    before = machine.ssh(started).stdout
    site.settings["docker"] = {"log_max_files": 4}
    assert changed(site.run("docker", "ollama"), machine) == 1
    assert machine.ssh(started).stdout == before
    site.assert_controls("ollama", machine)


def test_a_moved_data_root_brings_image_and_service_along(site: Any, machine: Any) -> None:
    site.settings["docker"] = {"data_root": "/var/lib/docker/moved"}
    # The configuration, the image, the network, and the project.
    assert changed(site.run("docker", "ollama"), machine) == 4
    site.assert_controls("docker", machine)
    site.assert_controls("ollama", machine)


def test_a_changed_archive_is_loaded_and_run(site: Any, machine: Any) -> None:
    before = container_id(machine)
    site.settings["images"] = images("0.32.14")
    assert changed(site.run("ollama"), machine) >= 2
    site.assert_controls("ollama", machine)
    assert container_id(machine) != before
    assert changed(site.run("ollama"), machine) == 0


def test_a_service_that_does_not_get_healthy_fails_with_its_last_words(site: Any, machine: Any) -> None:
    """The port is the SSH server's: the container cannot start, and the run says so."""
    site.settings["ollama"] = {**base_settings(), "publish_port": 22}
    run = site.run("ollama")
    assert not run.ok
    assert "is not healthy after" in run.output, run.output
    assert "address already in use" in run.output, run.output
    site.settings |= {"ollama": base_settings(), "images": images()}
    assert changed(site.run("ollama"), machine) > 0
    site.assert_controls("ollama", machine)


def test_wrong_settings_open_no_connection(site: Any, machine: Any, tmp_path: Path) -> None:
    site.settings["images"] = {"archives": {"ollama": str(tmp_path / "gone.tar")}}
    run = site.run("ollama")
    site.settings["images"] = images()
    assert run.returncode == 2, run.output
    assert "gone.tar" in run.output and "Connected" not in run.output


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, {"count": -1}),
        ({"gpu_count": 2}, {"count": 2}),
        ({"gpu_device_ids": ["0", "3"]}, {"device_ids": ["0", "3"]}),
    ],
    ids=["all", "count", "ids"],
)
def test_gpu_profile_as_compose_reads_it(
    site: Any, machine: Any, values: dict[str, Any], expected: dict[str, Any]
) -> None:
    settings = OllamaSettings(**values)
    gpus = reservation(Mode.RUNTIME, settings.gpu_count, settings.gpu_device_ids)
    text = render("templates/ollama/compose.yaml.j2", settings=settings, reservation=gpus)
    read = machine.ssh(f"docker compose --file - config --format json <<'END'\n{text}\nEND").stdout
    devices = json.loads(read)["services"]["ollama"]["deploy"]["resources"]["reservations"]["devices"]
    assert devices == [{"capabilities": ["gpu"], "driver": "nvidia", **expected}]


def test_gpus_on_a_host_without_a_card_are_refused_before_any_change(site: Any, machine: Any) -> None:
    before = container_id(machine)
    site.settings["ollama"] = {**base_settings(), "accelerator": "nvidia"}
    run = site.run("ollama")
    site.settings["ollama"] = base_settings()
    assert not run.ok
    assert 'no NVIDIA card is on the PCI bus: set ollama.accelerator = "cpu"' in run.output, run.output
    assert run.operations[machine.name] == 0 and container_id(machine) == before


def test_service_comes_back_after_a_reboot(site: Any, machine: Any) -> None:
    machine.reboot()
    machine.ssh(
        "for i in $(seq 60); do docker inspect --format '{{.State.Health.Status}}' ollama-ollama-1 | grep -qx healthy "
        "&& exit 0; sleep 0.5; done; exit 1"
    )
    site.assert_controls("ollama", machine)
    assert changed(site.run("docker", "ollama"), machine) == 0
