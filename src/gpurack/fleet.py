"""Visiting the hosts of an inventory outside of a deploy: several at a time, over the connections pyinfra itself has.

Jump hosts, known_hosts, agents, sudo and its password are thus what a deploy uses, whatever the inventory says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any, TypeVar, cast

from pyinfra.api.arguments import CONNECTOR_ARGUMENT_KEYS, ConnectorArguments, pop_global_arguments
from pyinfra.api.command import StringCommand
from pyinfra.api.config import Config
from pyinfra.api.exceptions import ConnectError, PyinfraError
from pyinfra.api.facts import FactBase
from pyinfra.api.host import Host
from pyinfra.api.inventory import Inventory
from pyinfra.api.state import State

CONNECTIONS = 16
"""Hosts visited at the same time."""

T = TypeVar("T")


class HostError(Exception):
    """A host cannot be reached, or does not answer a question; the message says why."""


def selected(inventory: Inventory, limit: Sequence[str] = ()) -> list[Host]:
    """Return the hosts whose name, or one of whose groups, is in a list or matches a pattern in it; all without one.

    Raises:
        LookupError: an entry selects no host; the message names it.
    """
    hosts = list(inventory)
    chosen = {
        entry: {host.name for host in hosts if any(fnmatchcase(name, entry) for name in (host.name, *host.groups))}
        for entry in limit
    }
    if empty := [entry for entry, names in chosen.items() if not names]:
        raise LookupError(f"no host or group {', '.join(empty)} in the inventory")
    wanted = set().union(*chosen.values())
    return [host for host in hosts if not limit or host.name in wanted]


def on_each(inventory: Inventory, visit: Callable[[Host], T], *, limit: Sequence[str] = ()) -> Iterator[T]:
    """Yield what a function returns for each host, in the inventory's order.

    Args:
        inventory: an inventory without problems; it is given a state of its own.
        visit: called for several hosts at the same time; must not raise.
        limit: see :func:`selected`.

    Raises:
        LookupError: see :func:`selected`.
    """
    State(inventory, Config())
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        yield from pool.map(visit, selected(inventory, limit))


@contextmanager
def connection(host: Host) -> Iterator[None]:
    """Hold a connection to a host of an initialised inventory.

    Raises:
        HostError: it cannot be reached.
    """
    try:
        host.connect(show_errors=False, raise_exceptions=True)
    except (ConnectError, PyinfraError) as error:
        raise HostError(str(error)) from error
    try:
        yield
    finally:
        host.disconnect()  # which leaves the connection itself to the end of pyinfra's process
        if client := getattr(host.connector, "client", None):
            client.close()


def how_to_run(host: Host, **arguments: Any) -> ConnectorArguments:
    """Return what a connector is told about running a command: sudo, its user and password, from the host's data.

    Args:
        host: a host of an initialised inventory.
        arguments: pyinfra's global arguments that win over the host's data, such as ``_timeout``.
    """
    settings, _ = pop_global_arguments(host.state, host, arguments)
    return cast("ConnectorArguments", {key: value for key, value in settings.items() if key in CONNECTOR_ARGUMENT_KEYS})


def read(host: Host, fact: type[FactBase[T]], *, timeout_seconds: int = 120, **arguments: Any) -> T:
    """Read a fact of a connected host.

    pyinfra's own ``host.get_fact`` belongs to a deploy: it prints a failure, fails the host and returns the default,
    which here would pass for an answer.

    Args:
        host: a connected host.
        fact: the fact.
        timeout_seconds: after which the host is given up. Only in processes whose standard library pyinfra's command
            has patched, as that of the gpurack command; elsewhere the command is waited for.
        arguments: of the fact's command.

    Raises:
        HostError: its command failed or took too long.
    """
    reader = fact()
    command = reader.command(**arguments)
    output = run(host, command, what=fact.__name__, timeout_seconds=timeout_seconds)
    return reader.process(output) if output else reader.default()


def run(host: Host, command: str | StringCommand, *, what: str, timeout_seconds: int = 120) -> list[str]:
    """Run a command on a connected host, and return the lines of its output.

    Args:
        host: a connected host.
        command: for the shell; as root, where the host's data says so.
        what: what to call it in an error.
        timeout_seconds: see :func:`read`.

    Raises:
        HostError: it failed or took too long.
    """
    try:
        done, output = host.run_shell_command(StringCommand(command), **how_to_run(host, _timeout=timeout_seconds))
    except TimeoutError as error:
        raise HostError(f"{what}: no answer within {timeout_seconds} s") from error
    except Exception as error:  # whatever the connection broke with, this host has not answered
        raise HostError(f"{what}: {str(error) or type(error).__name__}") from error
    if not done:
        raise HostError(f"{what}: {output.stderr.strip() or 'the command failed and said nothing'}")
    lines: list[str] = output.stdout_lines
    return lines
