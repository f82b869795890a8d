"""Running the roles' checks on the hosts of an inventory, over the same connections as pyinfra itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from pyinfra.api.command import StringCommand
from pyinfra.api.host import Host
from pyinfra.api.inventory import Inventory
from pyinfra.connectors.util import extract_control_arguments, make_unix_command_for_host
from testinfra.backend.base import BaseBackend, CommandResult
from testinfra.host import Host as TestinfraHost

from gpurack.controls import Result, Status, run_controls
from gpurack.fleet import HostError, connection, how_to_run, on_each
from gpurack.settings import enabled_roles


class PyinfraBackend(BaseBackend):  # type: ignore[misc]
    """A testinfra backend over a connected pyinfra host."""

    NAME = "pyinfra"

    def __init__(self, host: Host) -> None:
        super().__init__(host.name)
        self._pyinfra_host = host

    def get_encoding(self) -> str:
        """Return UTF-8, without the python3 on the host that testinfra would ask."""
        return "UTF-8"

    def run(self, command: str, *args: str, **_: Any) -> CommandResult:
        """Run a command as root and return its exit status and output."""
        host = self._pyinfra_host
        text = self.get_command(command, *args)
        arguments = how_to_run(host)
        extract_control_arguments(arguments)  # what is pyinfra's to heed, and no part of the command line
        line = make_unix_command_for_host(host.state, host, StringCommand(text), **arguments).get_raw_value()
        _, stdout, stderr = host.connector.client.exec_command(line)  # type: ignore[attr-defined]
        out, err = stdout.read(), stderr.read()
        return self.result(stdout.channel.recv_exit_status(), self.encode(text), out, err)


@dataclass
class HostReport:
    """What the checks found on one host; ``unreachable`` says why nothing could be checked."""

    host: str
    results: list[Result] = field(default_factory=list)
    unreachable: str = ""

    @property
    def ok(self) -> bool:
        """Whether every control that applies holds."""
        wrong = {Status.FAIL, Status.ERROR}
        return not self.unreachable and bool(self.results) and not any(r.status in wrong for r in self.results)


def verify(inventory: Inventory, *, roles: tuple[str, ...] = ()) -> Iterator[HostReport]:
    """Run the checks of every enabled role on every host, several hosts at a time; nothing is changed.

    Args:
        inventory: an inventory without problems.
        roles: only these roles; all enabled ones when empty.
    """
    yield from on_each(inventory, lambda host: verify_host(host, roles))


def verify_host(host: Host, roles: tuple[str, ...] = ()) -> HostReport:
    """Run the checks on one host of an initialised inventory."""
    report = HostReport(host.name)
    try:
        with connection(host):
            target = TestinfraHost(PyinfraBackend(host))
            for role, settings in enabled_roles(host):
                if not roles or role in roles:
                    report.results.extend(run_controls(role, target, settings))
    except HostError as error:
        report.unreachable = str(error)
    return report
