"""Facts read by controls: the command and parser of a pyinfra fact, over a testinfra host.

A control must not believe what a deploy wrote down, but it may read the host the way the deploy does.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

from pyinfra.api.facts import FactBase

from gpurack.controls import NotApplicable
from gpurack.facts.gpu import PciDevices
from gpurack.gpu.models import PciInventory
from gpurack.gpu.runtime import Mode

T = TypeVar("T")


def read(host: Any, fact: type[FactBase[T]], **arguments: Any) -> T:
    """Return what a fact says of a testinfra host."""
    instance = fact()
    command: Callable[..., Any] = instance.command
    text = command(**arguments)
    text = text if isinstance(text, str) else text.get_raw_value()
    lines = host.run(text).stdout.splitlines()
    return instance.process(lines) if lines else instance.default()


def cards(host: Any) -> PciInventory:
    """Return the host's NVIDIA cards.

    Raises:
        NotApplicable: it has none, and the role declares nothing on it.
    """
    found = read(host, PciDevices)
    if not found.cards:
        raise NotApplicable("no NVIDIA card is on the PCI bus")
    return found


def daemon_mode(host: Any) -> Mode:
    """Return how the host's Docker gives GPUs to containers, by its own configuration."""
    text = host.run("cat /etc/docker/daemon.json").stdout
    try:
        features = json.loads(text).get("features", {})
    except (ValueError, AttributeError):
        features = {}
    return Mode.CDI if features.get("cdi") is True else Mode.RUNTIME
