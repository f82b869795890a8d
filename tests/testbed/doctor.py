"""The doctor on test hosts, and the ways their Ollama is brought into a bad state."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpurack.lab import Machine
from tests.testbed.site import ROOT, Site

COMPOSE = "/etc/gpurack/compose/ollama/compose.yaml"
CONTAINER = "ollama-ollama-1"
UP = f"docker compose --file {COMPOSE} up --detach --wait --force-recreate"


@dataclass(frozen=True)
class Report:
    """What one run of ``gpurack doctor --json`` said."""

    returncode: int
    document: dict[str, Any]
    errors: str

    @property
    def host(self) -> dict[str, Any]:
        """The only host of the report."""
        [host] = self.document["hosts"]
        return dict(host)

    @property
    def causes(self) -> list[str]:
        """Ids of the findings that nothing else explains, in order."""
        return [finding["id"] for finding in self.host["findings"] if not finding["explained_by"]]

    @property
    def first(self) -> dict[str, Any]:
        """The finding that is named first."""
        return dict(self.host["findings"][0])


def doctor(site: Site, *arguments: str, roles: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run ``gpurack doctor`` on a site's hosts, from the repository's root."""
    folder = site.inventory(*roles)
    return subprocess.run(
        [str(Path(sys.executable).with_name("gpurack")), "doctor", str(folder), *arguments],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )


def examine(site: Site, *arguments: str) -> Report:
    """Run ``gpurack doctor --json`` and return what it said."""
    result = doctor(site, "--json", *arguments)
    assert result.stdout, result.stderr
    return Report(result.returncode, json.loads(result.stdout), result.stderr)


def with_service(machine: Machine, check: bool = True, wait: bool = True, **fields: Any) -> None:
    """Start Ollama's container anew with further fields of its Compose service."""
    override = json.dumps({"services": {"ollama": fields}})
    machine.ssh(f"printf %s {shlex.quote(override)} > /root/override.yaml")
    flags = "--detach --wait --force-recreate" if wait else "--detach --force-recreate"
    machine.ssh(f"docker compose --file {COMPOSE} --file /root/override.yaml up {flags}", check=check, timeout=120)


def with_environment(machine: Machine, **values: str) -> None:
    """Start Ollama's container anew with further environment: what its double prints and answers."""
    with_service(machine, environment={name: value.replace("$", "$$") for name, value in values.items()})


def as_declared(machine: Machine) -> None:
    """Start Ollama's container anew as the role declares it."""
    machine.ssh(f"rm -f /root/override.yaml; {UP}", timeout=120)


def kernel_says(machine: Machine, *lines: str) -> None:
    """Write lines to the journal under the kernel's name: the kernel itself belongs to the machine the tests run on."""
    for line in lines:
        machine.ssh(f"logger --tag kernel --priority kern.err {shlex.quote(line)}")
    machine.ssh("journalctl --sync")


def forget_kernel_log(machine: Machine) -> None:
    """Empty the journal, so that the kernel has said nothing."""
    machine.ssh(
        "journalctl --rotate --quiet; journalctl --vacuum-time=1s --quiet; sleep 1.1; journalctl --vacuum-time=1s --quiet"
    )
