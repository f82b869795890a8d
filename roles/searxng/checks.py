"""Controls of the searxng role."""

from __future__ import annotations

import json
from typing import Any

from gpurack import containers
from gpurack.controls import NotApplicable, control
from gpurack.operations.docker import NETWORK
from roles.searxng.config import CONFIG, LABEL, checksum, config_files
from roles.searxng.settings import SearxngSettings

USERS = {"searxng": "977:977", "valkey": "999:1000"}


def _all(host: Any, settings: SearxngSettings) -> dict[str, dict[str, Any]]:
    return {name: containers.container(host, "searxng", name) for name in settings.image_names}


@control(
    "SRX-01",
    "The search runs, is healthy and comes back after a reboot",
    severity="high",
    satisfies=["CIS Docker 1.6 5.27"],
)
def test_services_are_healthy(host: Any, settings: SearxngSettings) -> None:
    """Without it agents say that nothing was found."""
    wrong = [
        f"{name} {text}" for name, item in _all(host, settings).items() if (text := containers.health_problem(item))
    ]
    assert not wrong, "; ".join(wrong)


@control("SRX-02", "The containers run the pinned images", severity="high")
def test_images_are_pinned(host: Any, settings: SearxngSettings) -> None:
    """A moved tag is another program than the one that was approved."""
    wrong = [
        f"{name} {text}"
        for name, item in _all(host, settings).items()
        if (text := containers.image_problem(host, item, settings.images.reference(name)))
    ]
    assert not wrong, "; ".join(wrong)


@control(
    "SRX-03",
    "The search is published where the settings say, and nowhere else",
    severity="high",
    satisfies=["CIS Docker 1.6 5.14", "ISO 27001 A.8.20"],
)
def test_published(host: Any, settings: SearxngSettings) -> None:
    """Whoever reaches it searches the web in the site's name."""
    wanted = {f"8080/tcp on {settings.publish.address}:{settings.publish.port}"} if settings.publish else set()
    for name, item in _all(host, settings).items():
        found = containers.published(item)
        expected = wanted if name == "searxng" else set()
        assert found == expected, f"{name} is published on {', '.join(sorted(found)) or 'nothing'}"


@control(
    "SRX-04",
    "The containers have no more rights than they need",
    severity="high",
    satisfies=["CIS Docker 1.6 4.1", "CIS Docker 1.6 5.3", "CIS Docker 1.6 5.26"],
)
def test_rights(host: Any, settings: SearxngSettings) -> None:
    """It parses whatever the web answers."""
    wrong = [
        f"{name} {', '.join(found)}"
        for name, item in _all(host, settings).items()
        if (found := containers.rights_problems(item, USERS[name]))
    ]
    assert not wrong, "; ".join(wrong)


@control("SRX-05", "Only the chosen engines are asked", severity="high", satisfies=["ISO 27001 A.8.12"])
def test_engines(host: Any, settings: SearxngSettings) -> None:
    """What people ask goes to the engines; one that nobody chose is a leak. The running server itself is asked."""
    wanted = config_files(settings)
    for file, text in wanted.items():
        found = host.run("cat %s", f"{CONFIG}/{file}")
        assert found.rc == 0 and found.stdout == text, f"{CONFIG}/{file} is not the one of the settings"
    item = containers.container(host, "searxng", "searxng")
    assert item["Config"]["Labels"].get(LABEL) == checksum(wanted), "SearXNG runs with files from before"
    address = item["NetworkSettings"]["Networks"].get(NETWORK, {}).get("IPAddress", "")
    answer = host.run("curl --silent --show-error --fail --max-time 10 %s", f"http://{address}:8080/config")
    assert answer.rc == 0, f"SearXNG does not answer: {answer.stderr.strip()}"
    asked = {engine["name"] for engine in json.loads(answer.stdout)["engines"]}
    assert asked <= set(settings.engines), f"asked are also {', '.join(sorted(asked - set(settings.engines)))}"


@control("SRX-06", "The secret key is the settings', and root alone can read it", severity="medium")
def test_secret(host: Any, settings: SearxngSettings) -> None:
    """With the image's own key everybody can sign what SearXNG takes for its own."""
    path = "/etc/gpurack/compose/searxng/.env"
    owner = host.run("stat -c '%%U %%a' %s", path).stdout.strip()
    assert owner == "root 600", f"{path} is {owner or 'missing'}"
    environment = containers.environment(containers.container(host, "searxng", "searxng"))
    assert environment.get("SEARXNG_SECRET") == settings.secret_key.reveal(), "the server has another key"


@control("SRX-07", "AnythingLLM finds the search by its name", severity="high")
def test_network(host: Any, settings: SearxngSettings) -> None:
    """Its agents ask http://searxng:8080/search."""
    problem = containers.network_problem(containers.container(host, "searxng", "searxng"), "searxng")
    assert not problem, f"searxng {problem}"


@control("SRX-08", "The limiter's Valkey has no way out and is reached by SearXNG alone", severity="medium")
def test_valkey(host: Any, settings: SearxngSettings) -> None:
    """It asks nobody who they are."""
    if not settings.limiter:
        raise NotApplicable("the limiter is off")
    networks = containers.container(host, "searxng", "valkey")["NetworkSettings"]["Networks"]
    assert set(networks) == {"searxng_limiter"}, f"valkey is on {', '.join(networks)}"
    internal = host.check_output("docker network inspect --format '{{.Internal}}' %s", "searxng_limiter").strip()
    assert internal == "true", "searxng_limiter has a way out"
