"""A site of test hosts: its inventory, runs of the literal command on it, and the roles' controls."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from pprint import pformat
from typing import Any

from pyinfra.api.config import Config
from pyinfra.api.inventory import Inventory
from pyinfra.api.state import State

from gpurack.controls import Result, Status
from gpurack.lab import Machine
from gpurack.settings import SHARED_BLOCKS, role_models
from gpurack.ssh import transport
from gpurack.verify import verify_host

ROOT = Path(__file__).parents[2]
ANSI = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")
OUTCOME = re.compile(r"^\s*\[(?P<host>[^\]]+)\]\s+(?P<outcome>Success|Error|No changes)\b")


@dataclass(frozen=True)
class Run:
    """What one run of pyinfra did.

    Attributes:
        returncode: of the command.
        output: all it printed, without colours.
        changed: operations that changed something, by host.
        failed: operations that failed, by host.
        operations: operations that were carried out or found nothing to do, by host.
    """

    returncode: int
    output: str
    changed: dict[str, int]
    failed: dict[str, int]
    operations: dict[str, int]

    @property
    def ok(self) -> bool:
        """Whether everything went well, on every host."""
        return self.returncode == 0 and not any(self.failed.values())


@dataclass
class Site:
    """Hosts and the settings of their roles.

    Attributes:
        machines: the hosts, each in the groups ``gpu`` and ``all``.
        settings: role or shared block -> settings as in group_data; may be changed between runs. Roles that are not
            in it are disabled, unless a run names them.
        folder: where the inventory is written.
    """

    machines: list[Machine]
    settings: dict[str, dict[str, Any]]
    folder: Path
    _overrides: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def run(
        self,
        *roles: str,
        args: list[str] | None = None,
        data: Mapping[str, Mapping[str, Any]] | None = None,
        timeout: float = 600,
    ) -> Run:
        """Run ``pyinfra FOLDER deploys/ -y`` from the repository's root, or the deploys of the named roles.

        Args:
            roles: as for ``deploys/<role>.py``.
            args: further arguments of pyinfra.
            data: host name -> data that overrides the host's own, for this run.
            timeout: seconds.
        """
        result = self.command(*roles, args=["-y", *(args or [])], data=data, timeout=timeout)
        output = ANSI.sub("", result.stdout + result.stderr)
        counted = {kind: {machine.name: 0 for machine in self.machines} for kind in ("Success", "Error", "No changes")}
        for line in output.splitlines():
            match = OUTCOME.match(line)
            if match and match["host"] in counted["Error"]:
                counted[match["outcome"]][match["host"]] += 1
        carried_out = {name: counted["Success"][name] + counted["No changes"][name] for name in counted["Success"]}
        return Run(result.returncode, output, counted["Success"], counted["Error"], carried_out)

    def command(
        self,
        *roles: str,
        args: list[str],
        data: Mapping[str, Mapping[str, Any]] | None = None,
        timeout: float = 600,
    ) -> subprocess.CompletedProcess[str]:
        """Run pyinfra with exactly these arguments after inventory and deploys."""
        return subprocess.run(
            self._arguments(roles, args, data),
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            env={**os.environ, "PYINFRA_PROGRESS": "off"},
            check=False,
        )

    def start(self, *roles: str) -> subprocess.Popen[str]:
        """Start a run and return its process, output and errors together on stdout."""
        return subprocess.Popen(
            self._arguments(roles, ["-y"], None),
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYINFRA_PROGRESS": "off"},
        )

    def inventory(self, *roles: str) -> Path:
        """Write the inventory with the settings as they are now and return its folder, for commands beside pyinfra."""
        self._write(roles, {})
        return self.folder

    def _arguments(
        self, roles: tuple[str, ...], args: list[str], data: Mapping[str, Mapping[str, Any]] | None
    ) -> list[str]:
        self._write(roles, data or {})
        deploys = [f"deploys/{role}.py" for role in roles] or ["deploys/"]
        return [str(Path(sys.executable).with_name("pyinfra")), str(self.folder), *deploys, *args]

    def _write(self, roles: tuple[str, ...], data: Mapping[str, Mapping[str, Any]]) -> None:
        hosts = [(m.name, {**m.data(), **data.get(m.name, {})}) for m in self.machines]
        (self.folder / "group_data").mkdir(exist_ok=True)
        (self.folder / "hosts.py").write_text(f"gpu = {pformat(hosts)}\n")
        lines = [f"{role} = {pformat(values)}\n" for role, values in self._all_settings(roles).items()]
        (self.folder / "group_data/all.py").write_text("".join(lines))

    def _all_settings(self, roles: tuple[str, ...]) -> dict[str, dict[str, Any]]:
        shared = {name: self.settings[name] for name in SHARED_BLOCKS if name in self.settings}
        return shared | {
            role: self.settings.get(role, {} if role in roles else {"enabled": False}) for role in role_models()
        }

    def results(self, role: str, machine: Machine) -> list[Result]:
        """Run a role's controls on a host and return what they found."""
        data = {
            **machine.data(),
            "ssh_paramiko_connect_kwargs": {"transport_factory": transport},
            **self._all_settings((role,)),
        }
        inventory = Inventory(([(machine.name, data)], {}))
        State(inventory, Config())
        report = verify_host(inventory.get_host(machine.name), (role,))
        assert not report.unreachable, report.unreachable
        assert report.results, f"role {role} has no controls"
        return report.results

    def assert_controls(self, role: str, machine: Machine) -> None:
        """Fail unless every control of a role holds on a host, with all that do not."""
        wrong = [
            f"{result.control.id} {result.control.title}: {result.status.value}: {result.message}"
            for result in self.results(role, machine)
            if result.status in {Status.FAIL, Status.ERROR}
        ]
        assert not wrong, "\n".join(wrong)

    def failing(self, role: str, machine: Machine) -> set[str]:
        """Return the ids of a role's controls that do not hold on a host; a check that breaks is an error here too."""
        results = self.results(role, machine)
        broken = [f"{r.control.id}: {r.message}" for r in results if r.status is Status.ERROR]
        assert not broken, "\n".join(broken)
        return {result.control.id for result in results if result.status is Status.FAIL}
