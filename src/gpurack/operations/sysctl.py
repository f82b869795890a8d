"""Kernel parameters."""

from __future__ import annotations

import shlex
from collections.abc import Generator, Mapping

from pyinfra import host
from pyinfra.api import StringCommand, operation
from pyinfra.facts.server import Sysctl


@operation()
def parameters(values: Mapping[str, int | str]) -> Generator[StringCommand, None, None]:
    """Set kernel parameters in the running kernel, all in one go; a file makes them last.

    Args:
        values: parameter names, such as ``net.core.somaxconn``, and values.
    """
    found = host.get_fact(Sysctl, keys=list(values))
    wrong = {key: value for key, value in values.items() if plain(found.get(key)) != str(value)}
    if not wrong:
        host.noop("kernel parameters are set")
        return
    yield StringCommand("sysctl", "-q", "-w", *(shlex.quote(f"{key}={value}") for key, value in wrong.items()))


def plain(value: object) -> str:
    """Return a value of pyinfra's Sysctl fact as sysctl prints it: lists separated by spaces."""
    return " ".join(str(item) for item in value) if isinstance(value, list) else str(value)
