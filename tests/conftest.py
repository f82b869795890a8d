"""Test hosts for every module that wants them."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from gpurack import lab
from gpurack.lab import Machine
from tests.testbed.site import Site

# How long an example takes says how busy the machine is, and nothing of the code.
hypothesis.settings.register_profile("gpurack", deadline=None)
hypothesis.settings.load_profile("gpurack")

_numbers = itertools.count(1)


@pytest.fixture(scope="module", params=["bookworm", "trixie"])
def release(request: pytest.FixtureRequest) -> str:
    """Every supported release that can be had here."""
    return str(request.param)


@pytest.fixture(scope="module")
def machines() -> Iterator[Callable[..., list[Machine]]]:
    """Return a function that boots hosts, gone after the module: ``machines(2, release="trixie", disk_mib=200)``."""
    made: list[Machine] = []

    def boot(number: int = 1, **options: Any) -> list[Machine]:
        names = [f"t{os.getpid()}-{next(_numbers)}" for _ in range(number)]
        fresh = lab.up(names, owned=True, **options)
        made.extend(fresh)
        return fresh

    yield boot
    lab.down(made)


@pytest.fixture(scope="module")
def machine(release: str) -> Iterator[Machine]:
    """A fresh host of each release."""
    [fresh] = lab.up([f"t{os.getpid()}-{next(_numbers)}"], release=release, owned=True)
    yield fresh
    lab.down([fresh])


@pytest.fixture(scope="module")
def site_for(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Machine | Sequence[Machine], dict[str, Any]], Site]:
    """Return a function that makes a site of hosts and settings."""

    def make(hosts: Machine | Sequence[Machine], settings: dict[str, Any]) -> Site:
        machines = [hosts] if isinstance(hosts, Machine) else list(hosts)
        return Site(machines, settings, Path(tmp_path_factory.mktemp("site")))

    return make
