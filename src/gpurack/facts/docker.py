"""Facts about images and Compose projects that pyinfra's own Docker facts do not give in one round trip."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass, field
from typing import Any

from pyinfra.api import FactBase

# A bare host has no docker command, and a stopped daemon answers nothing: both mean "nothing there yet".
IF_DOCKER = "if command -v docker >/dev/null 2>&1; then"

HEALTH_TRIES = 24
"""Half seconds for which a container may take to tell its health: one interval and one time-out of a default check."""

CONTAINER_FORMAT = (
    '{"service":{{json (index .Config.Labels "com.docker.compose.service")}},'
    '"config_hash":{{json (index .Config.Labels "com.docker.compose.config-hash")}},'
    '"reference":{{json .Config.Image}},"image_id":{{json .Image}},"status":{{json .State.Status}},'
    '"health":{{if .State.Health}}{{json .State.Health.Status}}{{else}}null{{end}}}'
)


class ImageId(FactBase[str | None]):
    """Return the ID of an image on the host, or None."""

    def command(self, reference: str) -> str:
        """Return the command that prints the ID."""
        return (
            f"{IF_DOCKER} docker image inspect --format '{{{{.Id}}}}' {shlex.quote(reference)} 2>/dev/null || true; fi"
        )

    def process(self, output: list[str]) -> str | None:
        """Return the first line."""
        return next((line.strip() for line in output if line.strip()), None)

    @staticmethod
    def default() -> None:
        """Return the value for an image that is not there."""
        return


class Networks(FactBase[list[str]]):
    """Return the names of Docker's networks on the host."""

    default = list

    def command(self) -> str:
        """Return the command that prints one name a line."""
        return f"{IF_DOCKER} docker network ls --format '{{{{.Name}}}}' 2>/dev/null || true; fi"

    def process(self, output: list[str]) -> list[str]:
        """Return the lines."""
        return [line.strip() for line in output if line.strip()]


@dataclass(frozen=True)
class Container:
    """A container of a Compose project.

    Attributes:
        service: the Compose service it belongs to.
        config_hash: Compose's hash of the service's configuration it was made from.
        reference: image name it was made from.
        image_id: ID of the image it runs.
        status: ``running``, ``exited``, ``paused``, ...
        health: ``healthy``, ``unhealthy``, ``starting``, or None without a health check.
    """

    service: str
    config_hash: str | None
    reference: str
    image_id: str
    status: str
    health: str | None

    @property
    def serves(self) -> bool:
        """Whether it runs and, if it has a health check, passes it."""
        return self.status == "running" and self.health in (None, "healthy")

    @property
    def stuck(self) -> bool:
        """Whether `docker compose up` would leave it, or fail on it, rather than repair it."""
        return self.status in ("paused", "dead", "removing") or (
            self.status == "running" and self.health == "unhealthy"
        )


@dataclass
class Project:
    """A Compose project: what its file asks for, and what is there.

    Attributes:
        hashes: Compose's configuration hash of each service in the file.
        images: ID of each image the services' containers were made from, as the name resolves now.
        containers: the project's containers, one-off ones left out.
    """

    hashes: dict[str, str] = field(default_factory=dict)
    images: dict[str, str] = field(default_factory=dict)
    containers: list[Container] = field(default_factory=list)

    def is_current(self, service: str) -> bool:
        """Whether exactly one container serves, made from this configuration and from the image as it is now."""
        mine = [container for container in self.containers if container.service == service]
        return len(mine) == 1 and all(
            container.serves
            and container.config_hash == self.hashes.get(service)
            and container.image_id == self.images.get(container.reference)
            for container in mine
        )

    @property
    def is_up(self) -> bool:
        """Whether every service is as the file asks, and nothing is left of services no longer in it."""
        return bool(self.hashes) and all(map(self.is_current, self.hashes)) and not self.orphans

    @property
    def orphans(self) -> list[Container]:
        """Containers of services that are no longer in the file."""
        return [container for container in self.containers if container.service not in self.hashes]


class ComposeProject(FactBase[Project]):
    """Return the state of a Compose project.

    A container whose health is not known yet is waited for, for some seconds: a restart of the daemon forgets the
    health of the containers that outlived it, and that is nothing to repair.
    """

    default = Project

    def command(self, project: str, file: str) -> str:
        """Return the command; each line it prints starts with what it tells."""
        compose = f"docker compose --project-name {shlex.quote(project)} --file {shlex.quote(file)}"
        label = "com.docker.compose"
        return (
            f"{IF_DOCKER} tries={HEALTH_TRIES}; "
            f'while [ "$tries" -gt 0 ] && docker ps --quiet --filter health=starting '
            f"--filter label={label}.project={shlex.quote(project)} 2>/dev/null | grep -q .; "
            f"do tries=$((tries - 1)); sleep 0.5; done; "
            f"if test -f {shlex.quote(file)}; then "
            f"{compose} config --hash '*' 2>/dev/null | sed 's/^/hash /'; fi; "
            f"ids=$(docker ps --all --quiet --filter label={label}.project={shlex.quote(project)} "
            f"--filter label={label}.oneoff=False 2>/dev/null); "
            f"if test -n \"$ids\"; then docker container inspect --format 'container {CONTAINER_FORMAT}' $ids; "
            "for image in $(docker container inspect --format '{{.Config.Image}}' $ids | sort -u); do "
            'docker image inspect --format "image $image {{.Id}}" "$image" 2>/dev/null; done; fi; fi; true'
        )

    def process(self, output: list[str]) -> Project:
        """Parse the lines."""
        project = Project()
        for line in output:
            kind, _, rest = line.strip().partition(" ")
            if kind == "container":
                fields: dict[str, Any] = json.loads(rest)
                project.containers.append(Container(**fields))
            elif kind in ("hash", "image"):
                name, _, value = rest.partition(" ")
                (project.hashes if kind == "hash" else project.images)[name] = value.strip()
        return project
