"""``gpurack models``: the models of an inventory's hosts, and whether their files are what they are said to be."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import import_module
from typing import Any, TypeVar

import click
from pyinfra.api.host import Host
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gpurack.facts.ollama import BlobDigests, Models
from gpurack.fleet import HostError, connection, on_each, read
from gpurack.ollama import plan
from gpurack.ollama.plan import Found, Wanted
from gpurack.ollama.progress import size
from gpurack.preflight import inventory_or_exit
from gpurack.settings import settings_of

VERIFY_SECONDS = 24 * 3600
"""Longest time for reading a host's models: 10 TB at 120 MB a second."""

# Everything in one line each, for grep, where there is no terminal whose width would count.
PIPE_WIDTH = 240

T = TypeVar("T")


@dataclass(frozen=True)
class Row:
    """A model on a host, or one that should be there; ``note`` says what is not as declared."""

    host: str
    model: str = ""
    digest: str = ""
    size_bytes: int = 0
    loaded: str = ""
    declared: str = ""
    note: str = ""


@click.group()
def models() -> None:
    """Models on the hosts of an inventory: list them, or compare their files with their digests."""


LIMIT = click.option("--limit", multiple=True, help="Only this host or group, or those a pattern matches.")


@models.command("list")
@click.argument("inventory")
@click.option("--json", "as_json", is_flag=True, help="Print a list of objects.")
@LIMIT
def list_command(inventory: str, limit: tuple[str, ...], *, as_json: bool) -> None:
    """List the models of the hosts of INVENTORY; nothing is changed.

    Exit code 0 when every host was read, 1 when one could not be, 2 for a wrong inventory.
    """
    found = list(_each(inventory, limit, _rows))
    rows = [row for result in found for row in (result if isinstance(result, list) else [result])]
    if as_json:
        click.echo(json.dumps([asdict(row) for row in rows], indent=1))
    else:
        _show(rows)
    sys.exit(any(isinstance(result, Row) for result in found))


@models.command("verify")
@click.argument("inventory")
@LIMIT
def verify_command(inventory: str, limit: tuple[str, ...]) -> None:
    """Read every model file of the hosts of INVENTORY and compare it with its digest; nothing is changed.

    A host reads about 2 s a GB, and serves meanwhile. Exit code 0 when all is right, 1 when something is not or a host
    could not be read, 2 for a wrong inventory.
    """
    wrong = False
    for result in _each(inventory, limit, _damage):
        rows = result if isinstance(result, list) else [f"{result.host}: cannot be read: {result.note}"]
        for line in rows:
            click.echo(line)
        wrong = wrong or not isinstance(result, list) or any(": corrupt: " in line for line in rows)
    sys.exit(wrong)


def _each(inventory: str, limit: tuple[str, ...], work: Callable[[Host], T]) -> Iterator[T | Row]:
    """Do some work on each host; a host that cannot be read gives a row that says why."""

    def one(host: Host) -> T | Row:
        try:
            with connection(host):
                return work(host)
        except HostError as error:
            return Row(host.name, note=str(error))

    try:
        yield from on_each(inventory_or_exit(inventory), one, limit=limit)
    except LookupError as error:
        raise click.UsageError(f"--limit: {error.args[0]}") from error


def _settings(host: Host) -> tuple[Any, Any]:
    """Return a host's settings of the server and of its models."""
    return settings_of(host, "ollama"), settings_of(host, "ollama_models")


def _found(host: Host, server: Any) -> Found:
    address = server.local_address
    found = read(host, Models, address=address, directory=server.models_dir)
    if not found.up:
        raise HostError(f"Ollama does not answer at {address}")
    return found


def _rows(host: Host) -> list[Row]:
    server, settings = _settings(host)
    found = _found(host, server)
    declared = import_module("roles.ollama_models.wanted")
    return list(rows(host.name, found, declared.wanted(settings), declared.absent(settings)))


def rows(host: str, found: Found, wanted: Sequence[Wanted], absent: Sequence[Any]) -> Iterator[Row]:
    """Yield a host's models, then those that are declared and not there."""
    names = {model.name.key: model for model in wanted}
    bases = {model.source.key for model in wanted if model.source} - names.keys()
    gone = {name.key for name in absent}
    for key, model in sorted(found.models.items()):
        word = "declared" if key in names else "base" if key in bases else "absent" if key in gone else "unlisted"
        note = "lacks parts of its files" if found.disk.lacking(key) else ""
        if key in names and names[key].is_made and not plan.is_current(names[key], found):
            note = note or "not as declared"
        memory = found.loaded.get(key)
        yield Row(host, str(model.name), f"sha256:{model.digest}", model.size, _loaded(memory), word, note)
    for key, missing in sorted(names.items()):
        if key not in found.models:
            yield Row(host, str(missing.name), declared="declared", note="missing")


def _loaded(memory: plan.Loaded | None) -> str:
    if memory is None:
        return ""
    left = memory.expires - datetime.now(UTC)
    return "for ever" if left > plan.FOREVER else f"{max(left.total_seconds(), 0) / 60:.0f} min"


def _damage(host: Host) -> list[str]:
    server, _ = _settings(host)
    found = read(host, Models, address=server.local_address, directory=server.models_dir)
    actual = read(host, BlobDigests, timeout_seconds=VERIFY_SECONDS, directory=server.models_dir)
    return list(damage(host.name, found, actual, server.models_dir))


def damage(host: str, found: Found, actual: dict[str, str], directory: str) -> Iterator[str]:
    """Yield a line for each blob that is not what its name says, with its models and the cure; else one for all.

    Args:
        host: its name.
        found: what is on it.
        actual: SHA-256 of each blob by its file's name.
        directory: models_dir of the server.
    """
    bad = {name for name, digest in actual.items() if name != f"sha256-{digest}"}
    bad |= {plan.file_of(digest) for key in found.disk.manifests for digest in found.disk.lacking(key)}
    for name in sorted(bad):
        users = [
            str(found.models[key].name) if key in found.models else key
            for key, blobs in sorted(found.disk.manifests.items())
            if name in map(plan.file_of, blobs)
        ]
        path = f"{directory}/models/blobs/{name}"
        state = f"has SHA-256 {actual[name]}" if name in actual else "is missing"
        cure = f"rm {path} on the host, then" if name in actual else "on this machine,"
        yield (
            f"{host}: corrupt: {path} {state}; it belongs to {', '.join(users) or 'no model'}; "
            f"cure: {cure} pyinfra INVENTORY deploys/ollama_models.py pulls or makes them again"
        )
    if not bad:
        total = sum(found.disk.blobs[name].size for name in actual if name in found.disk.blobs)
        yield f"{host}: {len(actual)} files, {size(total)}: all have their digest"


def _show(found: Sequence[Row]) -> None:
    console = Console()
    table = Table(box=None, pad_edge=False)
    for column in ("host", "model", "digest", "size", "loaded", "declared", "note"):
        table.add_column(column, overflow="fold")
    for row in found:
        note = row.note if row.model else f"cannot be read: {row.note}"
        cells = (row.host, row.model, row.digest, size(row.size_bytes) if row.digest else "", row.loaded, row.declared)
        table.add_row(*(Text("".join(filter(str.isprintable, cell))) for cell in (*cells, note)))
    if not console.is_terminal:
        console.width = PIPE_WIDTH
    console.print(table)
