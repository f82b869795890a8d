"""What controls read of a host's containers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gpurack import imagearchive
from gpurack.operations.docker import NETWORK

LABEL = "com.docker.compose"


def container(host: Any, project: str, service: str) -> dict[str, Any]:
    """Return what the engine says of the one container of a Compose service.

    Raises:
        AssertionError: the engine does not answer, or there is not exactly one.
    """
    found = host.run(
        f"docker ps --all --quiet --filter label={LABEL}.project={project} --filter label={LABEL}.service={service} "
        f"--filter label={LABEL}.oneoff=False"
    )
    if found.rc != 0:
        raise AssertionError(f"docker does not answer: {found.stderr.strip()}")
    ids = found.stdout.split()
    if len(ids) != 1:
        raise AssertionError(f"there are {len(ids)} containers of {service}, not 1")
    inspected: dict[str, Any] = json.loads(host.check_output("docker container inspect %s", ids[0]))[0]
    return inspected


def health_problem(item: dict[str, Any]) -> str:
    """Return why a container does not serve, or would not after a reboot; empty if it does."""
    state = item["State"]
    if state["Status"] != "running":
        return f"is {state['Status']}, exit status {state['ExitCode']}"
    health = (state.get("Health") or {}).get("Status")
    if health != "healthy":
        return f"is {health or 'without a health check'}"
    policy = item["HostConfig"]["RestartPolicy"]["Name"]
    return "" if policy == "unless-stopped" else f"has the restart policy {policy or 'no'}: a reboot may leave it down"


def image_problem(host: Any, item: dict[str, Any], reference: str, archive: Path | None = None) -> str:
    """Return how a container's image differs from the one of the settings; empty if it does not.

    Args:
        host: the host.
        item: the container.
        reference: name of the image.
        archive: archive it has to be from; None where it is from a registry, or its archive is not compared.
    """
    made_from = item["Config"]["Image"]
    if made_from != reference:
        return f"was made from {made_from}, not {reference}"
    image = host.run("docker image inspect --format '{{.Id}}' %s", reference)
    if image.rc != 0:
        return f"runs {reference}, which is not on the host any more"
    if item["Image"] != image.stdout.strip():
        return "runs an older image of the same name"
    if archive and item["Image"] not in imagearchive.read(archive).ids(reference):
        return f"runs another image than the one in {archive.name}"
    return ""


def published(item: dict[str, Any]) -> set[str]:
    """Return the addresses and ports of the host that lead to a container."""
    bindings = item["HostConfig"]["PortBindings"] or {}
    return {
        f"{port} on {entry['HostIp'] or '0.0.0.0'}:{entry['HostPort']}"  # noqa: S104 - not bound here
        for port, entries in bindings.items()
        for entry in entries or []
    }


def rights_problems(item: dict[str, Any], user: str | None) -> list[str]:
    """Return the rights a container has beyond what it needs.

    Args:
        item: the container.
        user: the numeric user and group it is to run as; None where its image needs root.
    """
    config = item["HostConfig"]
    wrong = []
    if config["Privileged"]:
        wrong.append("is privileged")
    if "no-new-privileges:true" not in (config["SecurityOpt"] or []):
        wrong.append("may gain privileges")
    if config["CapAdd"]:
        wrong.append(f"has added capabilities {config['CapAdd']}")
    if user and item["Config"]["User"] != user:
        wrong.append(f"runs as {item['Config']['User'] or 'root'}, not as {user}")
    if user and "ALL" not in (config["CapDrop"] or []):
        wrong.append("keeps Docker's default capabilities")
    return wrong


def network_problem(item: dict[str, Any], name: str) -> str:
    """Return why a container is not found by its name on the services' network; empty if it is."""
    networks = item["NetworkSettings"]["Networks"]
    if NETWORK not in networks:
        return f"is on {', '.join(networks) or 'no network'}, not on {NETWORK}"
    aliases = networks[NETWORK].get("Aliases") or []
    return "" if name in aliases else f"is called {', '.join(aliases)} on {NETWORK}, not {name}"


def environment(item: dict[str, Any]) -> dict[str, str]:
    """Return a container's environment."""
    return dict(entry.split("=", 1) for entry in item["Config"]["Env"])
