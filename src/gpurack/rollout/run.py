"""The order of a roll-out: restore point, deploy, trial, and on to the next hosts or back."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from pyinfra.api.host import Host
from pyinfra.api.inventory import Inventory

from gpurack.fleet import HostError, connection, on_each, run
from gpurack.rollout import restore_point
from gpurack.rollout.trial import Verdict, failing_controls, try_host
from gpurack.settings import settings_of

CANARY_GROUP = "canary"
"""Group of the inventory whose hosts go first."""

RESTORE_SECONDS = 300
"""Longest wait for a project to become healthy after it was put back."""

BACK = "serves again what it served before"

T = TypeVar("T")
Tell = Callable[[str], None]


class RolloutError(Exception):
    """A roll-out cannot begin; nothing was changed. The message says why and what to do."""


@dataclass(frozen=True)
class Prepared:
    """A host before it is changed.

    Attributes:
        failing: controls that do not hold, with what they say.
        taken: whether this roll-out took the restore point.
        kept: time of the restore point that an unfinished roll-out had left.
        error: why the host cannot be prepared; empty when it is.
    """

    failing: Mapping[str, str] = field(default_factory=dict)
    taken: bool = False
    kept: str = ""
    error: str = ""


@dataclass(frozen=True)
class Stage:
    """Hosts that are changed together, and tried before the next ones."""

    title: str
    hosts: tuple[str, ...]


def stages_of(
    inventory: Inventory, *, canary: Sequence[str] = (), limit: Sequence[str] = (), serial: int = 1
) -> list[Stage]:
    """Return the order of a roll-out.

    Args:
        inventory: the inventory.
        canary: hosts that go first; without any the group ``canary``, and without that the inventory's first host.
        limit: hosts that the roll-out is for, the canary included; all when empty.
        serial: hosts of each stage after the canary.

    Raises:
        RolloutError: a name is none of the inventory's hosts, or the canary is outside of the limit.
    """
    names = [host.name for host in inventory]
    if unknown := [name for name in (*canary, *limit) if name not in names]:
        raise RolloutError(f"no host {', '.join(unknown)} in the inventory; there are {', '.join(names)}")
    wanted = [name for name in names if not limit or name in limit]
    grouped = [host.name for host in inventory if CANARY_GROUP in host.groups and host.name in wanted]
    first = list(dict.fromkeys(canary)) or grouped or wanted[:1]
    if outside := [name for name in first if name not in wanted]:
        raise RolloutError(f"canary {', '.join(outside)} is not among the hosts of --limit")
    rest = [name for name in wanted if name not in first]
    later = [tuple(rest[index : index + serial]) for index in range(0, len(rest), serial)]
    return [Stage("canary", tuple(first)), *(Stage(f"stage {n}", hosts) for n, hosts in enumerate(later, start=2))]


def roll_out(
    inventory: Inventory, path: str, deploys: Sequence[str], stages: Sequence[Stage], tell: Tell
) -> Iterator[Verdict]:
    """Carry a roll-out through, yielding what became of each host; it ends with the first stage that does not hold.

    Args:
        inventory: the inventory, loaded; it is given a state of its own.
        path: the inventory as pyinfra is told it.
        deploys: the deploys as pyinfra is told them.
        stages: see :func:`stages_of`.
        tell: is called with a line of text as things happen.
    """
    for stage in stages:
        names = ", ".join(stage.hosts)
        tell(f"{stage.title}: {names}: taking a restore point")
        ready = _on_hosts(inventory, stage.hosts, _prepare)
        for name, found in ready.items():
            if found.kept:
                tell(f"{name}: an unfinished roll-out left its restore point of {found.kept}; that one is kept")
        if any(found.error for found in ready.values()):
            _on_hosts(inventory, [name for name, found in ready.items() if found.taken], _drop)
            yield from (Verdict(name, failures=(found.error,)) for name, found in ready.items() if found.error)
            return
        tell(f"{stage.title}: {names}: pyinfra {path} {' '.join(deploys)}")
        code = deploy(path, deploys, stage.hosts)
        tell(f"{stage.title}: {names}: asking the models")
        verdicts = _tried(inventory, stage, ready, code)
        if all(item.holds for item in verdicts):
            _on_hosts(inventory, stage.hosts, _drop)
            yield from verdicts
            continue
        tell(f"{stage.title}: {names}: does not hold; putting back what was served before")
        outcome = put_back(inventory, stage.hosts)
        for item in verdicts:
            yield Verdict(item.host, item.trials, (*item.failures, outcome[item.host] or BACK))
        return


def _tried(inventory: Inventory, stage: Stage, ready: Mapping[str, Prepared], code: int) -> list[Verdict]:
    """Try the hosts of a stage; an exit code of pyinfra other than 0 is a failure of each."""

    def visit(host: Host) -> Verdict:
        found = try_host(host, ready[host.name].failing)
        if code:
            found = replace(found, failures=(f"pyinfra ended with exit code {code}", *found.failures))
        return found

    return list(_on_hosts(inventory, stage.hosts, visit).values())


def put_back(inventory: Inventory, hosts: Sequence[str]) -> dict[str, str]:
    """Give hosts back what they served at their restore point; return what went wrong by host, empty if nothing."""

    def back(host: Host) -> str:
        script = restore_point.put_back(places(host), RESTORE_SECONDS)
        if error := _run(host, script, "putting back", 4 * RESTORE_SECONDS).error:
            return f"NOT put back: {error}; the restore point is kept in {restore_point.POINT}"
        return _drop(host)

    return _on_hosts(inventory, hosts, back)


def deploy(path: str, deploys: Sequence[str], hosts: Sequence[str]) -> int:
    """Run the literal command on some hosts, its output as it comes; return its exit code."""
    program = Path(sys.executable).with_name("pyinfra")
    limits = [argument for name in hosts for argument in ("--limit", name)]
    return subprocess.run([str(program), path, *deploys, "-y", *limits], check=False).returncode


def places(host: Host) -> restore_point.Places:
    """Return where a host keeps what it serves."""
    return restore_point.Places(settings_of(host, "ollama").models_dir, settings_of(host, "anythingllm").data_dir)


def _prepare(host: Host) -> Prepared:
    """Take a host's restore point."""
    try:
        failing = failing_controls(host)
    except HostError as error:
        return Prepared(error=str(error))
    done = _run(host, restore_point.take(places(host)), "restore point")
    if done.error:
        return Prepared(error=done.error)
    word, _, time = (done.lines or [""])[-1].partition(" ")
    return Prepared(failing=failing, taken=word == "taken", kept=time)


def _drop(host: Host) -> str:
    return _run(host, restore_point.drop(places(host)), "restore point").error


@dataclass(frozen=True)
class _Done:
    lines: Sequence[str] = ()
    error: str = ""


def _run(host: Host, command: str, what: str, timeout: int = 300) -> _Done:
    try:
        with connection(host):
            return _Done(run(host, command, what=what, timeout_seconds=timeout))
    except HostError as error:
        return _Done(error=str(error))


def _on_hosts(inventory: Inventory, hosts: Sequence[str], visit: Callable[[Host], T]) -> dict[str, T]:
    """Call a function for some hosts at the same time; return what it returned, by host."""
    if not hosts:
        return {}
    order = [host.name for host in inventory if host.name in hosts]
    return dict(zip(order, on_each(inventory, visit, limit=order), strict=True))
