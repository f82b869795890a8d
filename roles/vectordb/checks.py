"""Controls of the vectordb role."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gpurack import containers
from gpurack.controls import NotApplicable, control
from gpurack.facts.pgvector import CONTAINER, LOGIN
from gpurack.operations.docker import NETWORK
from gpurack.service import Service
from roles.vectordb.services import services
from roles.vectordb.settings import NAMES, VectordbSettings


def _each(host: Any, settings: VectordbSettings, problem: Callable[[Service, dict[str, Any]], str]) -> None:
    """Fail with what is wrong with any of the databases."""
    chosen = list(services(settings))
    if not chosen:
        raise NotApplicable("the settings name no database")
    found = [(item.name, problem(item, containers.container(host, item.name, item.name))) for item in chosen]
    wrong = [f"{name} {text}" for name, text in found if text]
    assert not wrong, "; ".join(wrong)


@control(
    "VECT-01",
    "Every database runs, is healthy and comes back after a reboot",
    severity="critical",
    satisfies=["CIS Docker 1.6 5.27"],
)
def test_databases_are_healthy(host: Any, settings: VectordbSettings) -> None:
    """Without its vector database AnythingLLM answers without the documents, and says nothing of it."""
    _each(host, settings, lambda _, item: containers.health_problem(item))


@control("VECT-02", "Every database runs its pinned image", severity="high")
def test_images_are_pinned(host: Any, settings: VectordbSettings) -> None:
    """A moved tag may bring a release that converts the data on disk, with no way back."""
    _each(
        host,
        settings,
        lambda service, item: containers.image_problem(host, item, settings.images.reference(service.image)),
    )


@control(
    "VECT-03",
    "Databases are published where the settings say, and nowhere else",
    severity="critical",
    satisfies=["CIS Docker 1.6 5.14", "ISO 27001 A.8.20"],
)
def test_published(host: Any, settings: VectordbSettings) -> None:
    """Docker's published ports pass the host's firewall by; what is in these databases is every document's text."""

    def problem(service: Service, item: dict[str, Any]) -> str:
        publish = settings.databases[service.name].publish
        wanted = {f"{service.port}/tcp on {publish.address}:{publish.port}"} if publish else set()
        found = containers.published(item)
        return "" if found == wanted else f"is published on {', '.join(sorted(found)) or 'nothing'}"

    _each(host, settings, problem)


@control(
    "VECT-04",
    "Databases have no more rights than they need",
    severity="high",
    satisfies=["CIS Docker 1.6 4.1", "CIS Docker 1.6 5.3", "CIS Docker 1.6 5.26"],
)
def test_rights(host: Any, settings: VectordbSettings) -> None:
    """Milvus alone is left root in its container: its makers run it so."""
    _each(host, settings, lambda service, item: ", ".join(containers.rights_problems(item, service.user)))


@control("VECT-05", "The databases' data is for their user alone", severity="high", satisfies=["ISO 27001 A.8.3"])
def test_data(host: Any, settings: VectordbSettings) -> None:
    """The data holds the text of every document; another path may be on a disk without room or backup."""

    def problem(service: Service, item: dict[str, Any]) -> str:
        mounts = {mount["Destination"]: mount.get("Source") for mount in item["Mounts"]}
        for folder, target in service.folders.items():
            path = f"{settings.data_dir}/{service.name}/{folder}"
            if mounts.get(target) != path:
                return f"keeps {target} in {mounts.get(target)}, not in {path}"
        top = f"{settings.data_dir}/{service.name}"
        owner = host.run("stat -c '%%u:%%g %%a' %s", top).stdout.strip()
        return "" if owner == f"{service.owner} 700" else f"has its data in {top}, which is {owner or 'missing'}"

    _each(host, settings, problem)


@control(
    "VECT-06",
    "Databases have the settings' secrets, which root alone can read on the host",
    severity="high",
    satisfies=["ISO 27001 A.5.17", "ISO 27001 A.8.24"],
)
def test_secrets(host: Any, settings: VectordbSettings) -> None:
    """A rotated secret that a database was never told protects nothing; a file others can read gives it away."""

    def problem(service: Service, item: dict[str, Any]) -> str:
        path = f"/etc/gpurack/compose/{service.name}/.env"
        if not service.secrets:
            return ""
        owner = host.run("stat -c '%%U %%a' %s", path).stdout.strip()
        if owner != "root 600":
            return f"has its secrets in {path}, which is {owner or 'missing'}"
        environment = containers.environment(item)
        wrong = [name for name, value in service.secrets.items() if environment.get(name) != value]
        return f"has another {', '.join(wrong)} than the settings" if wrong else ""

    _each(host, settings, problem)


@control("VECT-07", "No database runs that is not in the settings", severity="medium")
def test_no_other(host: Any, settings: VectordbSettings) -> None:
    """What was taken out of the settings is not removed, for its data's sake; forgotten, nobody patches it."""
    running = host.check_output(f"docker ps --all --format '{{{{.Label \"{containers.LABEL}.project\"}}}}'").split()
    left = sorted(set(running) & set(NAMES) - set(settings.databases))
    commands = "; ".join(f"docker compose --project-name {name} down" for name in left)
    assert not left, f"not in the settings: {', '.join(left)}. Its data stays with: {commands}"


@control("VECT-08", "Databases are found by their names on the services' network", severity="high")
def test_network(host: Any, settings: VectordbSettings) -> None:
    """AnythingLLM asks for pgvector, chroma, milvus or qdrant there."""
    _each(host, settings, lambda service, item: containers.network_problem(item, service.name))


@control(
    "VECT-09",
    "Who comes without the secret is refused",
    severity="critical",
    satisfies=["ISO 27001 A.8.5"],
)
def test_strangers(host: Any, settings: VectordbSettings) -> None:
    """Every container on the network reaches these ports. Chroma has had no authentication since 1.0."""
    if not (settings.pgvector or settings.qdrant or settings.milvus):
        raise NotApplicable("no database with authentication")
    wrong = []
    if settings.pgvector:
        right, stranger = (
            host.run(f"docker exec --env {variable} {CONTAINER} sh -c '{LOGIN}'").rc == 0
            for variable in ("GPURACK_CHECK=1", "POSTGRES_PASSWORD=wrong")
        )
        wrong += [] if right else ["pgvector does not take the password of the settings"]
        wrong += ["pgvector takes any password"] if stranger else []
    if settings.qdrant:
        item = containers.container(host, "qdrant", "qdrant")
        address = item["NetworkSettings"]["Networks"].get(NETWORK, {}).get("IPAddress", "")
        status = host.run(
            "curl --silent --output /dev/null --max-time 10 --write-out '%%{http_code}' %s",
            f"http://{address}:6333/collections",
        ).stdout.strip()
        wrong += [] if status in ("401", "403") else [f"qdrant answers {status} to a request without its key"]
    if settings.milvus:
        item = containers.container(host, "milvus", "milvus")
        asks = containers.environment(item).get("COMMON_SECURITY_AUTHORIZATIONENABLED")
        wrong += [] if asks == "true" else ["milvus asks nobody who they are"]
    assert not wrong, "; ".join(wrong)
