"""Compose projects: a file, and containers that are as the file says."""

from __future__ import annotations

import shlex
from collections.abc import Generator
from datetime import timedelta
from io import StringIO
from typing import Any

from pyinfra import host
from pyinfra.api import operation
from pyinfra.api.command import PyinfraCommand
from pyinfra.operations import files

from gpurack.diff import log_diff
from gpurack.facts.docker import ComposeProject
from gpurack.facts.textfile import TextFile
from gpurack.rendering import render

ROOT = "/etc/gpurack/compose"


def compose_file(project: str) -> str:
    """Return the path of a project's Compose file on a host."""
    return f"{ROOT}/{project}/compose.yaml"


@operation()
def project(project: str, src: str, timeout: timedelta, **data: Any) -> Generator[str | PyinfraCommand, None, None]:
    """Put a project's Compose file in place and make the containers agree with it.

    Compose itself decides which services to recreate; it is called only if the file changed, or if a service does not
    run, is not healthy, or was made from another configuration or image. The new file is checked by Compose before it
    takes the place of the old one. A service that does not become healthy in time fails the operation, with the last
    lines of its log.

    + project: name of the project
    + src: Jinja2 template of the Compose file
    + timeout: longest wait for the services to become healthy
    + data: variables of the template
    """
    path = compose_file(project)
    wanted = render(src, **data)
    current = host.get_fact(TextFile, path=path)
    same = current is not None and (current.content, current.owner, current.mode) == (wanted, "root:root", "600")
    state = host.get_fact(ComposeProject, project=project, file=path)
    if same and state.is_up:
        host.noop(f"project {project} is up")
        return
    if not same:
        log_diff(path, current.content if current else "", wanted)
        yield from files.put._inner(src=StringIO(wanted), dest=f"{path}.new", user="root", group="root", mode="600")
        yield (
            f"docker compose --file {path}.new config --quiet && mv {path}.new {path} "
            f"|| {{ rm -f {path}.new; exit 1; }}"
        )
    yield up_command(project, timeout, recreate=any(container.stuck for container in state.containers))


def up_command(project: str, timeout: timedelta, *, recreate: bool) -> str:
    """Return the command that brings a project up, waits for it, and says why it did not come up."""
    compose = f"docker compose --project-name {shlex.quote(project)} --file {compose_file(project)}"
    seconds = int(timeout.total_seconds())
    force = " --force-recreate" if recreate else ""
    return (
        f"{compose} --progress quiet up --detach --remove-orphans --wait --wait-timeout {seconds}{force} && exit 0\n"
        f"echo 'project {project} is not healthy after {seconds} s; its containers and last log lines:' >&2\n"
        f"{compose} ps --all >&2; {compose} logs --no-color --tail 20 >&2; exit 1"
    )
