"""The searxng role on a real host: a double of SearXNG and a real Valkey, see tests/doubles/vectordb."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.testbed.vectordb import archives

pytestmark = pytest.mark.host

COMPOSE = "/etc/gpurack/compose/searxng/compose.yaml"
KEY = "5ea7c4" * 11


@pytest.fixture(scope="module")
def machine(machines: Any) -> Any:
    """Return one host: the role says the same to Docker on both releases."""
    return machines(release="trixie")[0]


@pytest.fixture(scope="module")
def site(machine: Any, site_for: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a site of one host whose first run brought up the search with its limiter."""
    key = Path(tmp_path_factory.mktemp("secrets")) / "key"
    key.write_text(KEY)
    searxng = {
        "enabled": True,
        "secret_key": {"file": str(key)},
        "engines": ["wikipedia", "duckduckgo"],
        "limiter": True,
        "limiter_trusted": ["172.16.0.0/12"],
        "health_interval": "PT1S",
        "health_start_period": "PT20S",
        "ready_timeout": "PT60S",
    }
    images = {"archives": archives("searxng", "valkey")}
    site = site_for(machine, {"docker": {}, "searxng": searxng, "images": images})
    first = site.run("docker", "searxng", args=["-vvv", "--diff"])
    assert first.ok, first.output
    assert KEY not in first.output
    return site


def changed(run: Any, machine: Any) -> int:
    """Return how many operations changed something in a run that must succeed."""
    assert run.ok, run.output
    return int(run.changed[machine.name])


def test_first_run_satisfies_every_control_and_second_changes_nothing(site: Any, machine: Any) -> None:
    site.assert_controls("searxng", machine)
    assert changed(site.run("docker", "searxng"), machine) == 0


def test_an_agent_gets_its_answer_as_json_and_nobody_else_is_served(site: Any, machine: Any) -> None:
    """As AnythingLLM's agent asks it: by name over the services' network, format=json."""
    image = "$(docker inspect --format '{{.Config.Image}}' searxng-searxng-1)"
    ask = (
        "docker run --rm --network gpurack --entrypoint wget "
        + image
        + " -qO- 'http://searxng:8080/search?q=gpu&format=json'"
    )
    assert json.loads(machine.ssh(ask).stdout)["results"][0]["title"] == "gpu"
    assert not [line for line in machine.ssh("ss -Hltn").stdout.splitlines() if ":8080" in line or ":6379" in line]
    assert machine.ssh("docker exec searxng-searxng-1 id -u").stdout.strip() == "977"


def test_valkey_has_no_way_out(site: Any, machine: Any) -> None:
    route = machine.ssh("cat /proc/$(docker inspect --format '{{.State.Pid}}' searxng-valkey-1)/net/route").stdout
    assert not [line for line in route.splitlines()[1:] if line.split()[1] == "00000000"], "a default route"


UP = f"docker compose --file {COMPOSE} up --detach --wait"
CONFIG = "/etc/gpurack/compose/searxng/config/settings.yml"
BREAKAGES = {
    "engine": (f'sed -i \'s/      - "wikipedia"/&\\n      - "bing"/\' {CONFIG}', {"SRX-05"}),
    "secret-file": ("chmod 644 /etc/gpurack/compose/searxng/.env", {"SRX-06"}),
    "published": (
        f"sed -i '0,/    networks:/s//    ports: [\"8080:8080\"]\\n    networks:/' {COMPOSE} && {UP}",
        {"SRX-03"},
    ),
    "rights": (f"sed -i '0,/    cap_drop:/s//    cap_add: [NET_RAW]\\n    cap_drop:/' {COMPOSE} && {UP}", {"SRX-04"}),
    "valkey": ("docker network connect gpurack searxng-valkey-1", {"SRX-08"}),
    "network": ("docker network disconnect gpurack searxng-searxng-1", {"SRX-05", "SRX-07"}),
    "image": (
        "name=$(docker inspect --format '{{.Config.Image}}' searxng-searxng-1) && docker tag $name kept:1 && "
        "docker image rm --no-prune $name",
        {"SRX-02"},
    ),
    "stopped": ("docker stop --time 1 searxng-valkey-1", {"SRX-01"}),
}


def test_each_breakage_is_seen_by_its_control_and_a_run_repairs_them(site: Any, machine: Any) -> None:
    expected: set[str] = set()
    for name, (breakage, controls) in BREAKAGES.items():
        machine.ssh(breakage)
        expected |= controls
        assert site.failing("searxng", machine) == expected, name
    machine.ssh(f"docker compose --file {COMPOSE} down")  # Compose sees nothing in a network joined by hand
    assert changed(site.run("searxng"), machine) > 0
    site.assert_controls("searxng", machine)


def test_another_engine_makes_the_container_anew_without_the_limiter(site: Any, machine: Any) -> None:
    site.settings["searxng"] |= {"engines": ["wikipedia", "qwant"], "limiter": False}
    assert changed(site.run("searxng"), machine) == 2
    site.assert_controls("searxng", machine)
    assert machine.ssh("docker ps --all --quiet --filter name=searxng-valkey").stdout == ""
    assert changed(site.run("searxng"), machine) == 0
