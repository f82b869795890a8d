"""``gpurack secrets``: the encrypted store of an inventory."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import click
from rich.console import Console
from rich.table import Table

from gpurack.directories import with_entry_files
from gpurack.inventory import InventoryError, load
from gpurack.secrets.demand import Demand, demands, missing
from gpurack.secrets.document import Document, check_name
from gpurack.secrets.editing import edited
from gpurack.secrets.errors import SecretError
from gpurack.secrets.keys import IDENTITY_VARIABLE
from gpurack.secrets.stores import Store

EXIT_FINDINGS = 1
EXIT_ERROR = 2


@click.group()
def secrets() -> None:
    """The encrypted secrets of an inventory: secrets.age, for everyone in recipients.txt.

    Exit code 2 when the store, the identity or the inventory cannot be used.
    """


def _command(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command its inventory and identity, and say errors in one line."""

    @click.argument("inventory")
    @click.option("--identity", help=f"File of your private age or SSH key; also {IDENTITY_VARIABLE}.")
    @functools.wraps(function)
    def run(inventory: str, identity: str | None, **options: Any) -> None:
        try:
            function(inventory, Store(_folder(inventory), identity), **options)
        except (SecretError, InventoryError) as error:
            _end(str(error))

    return run


def _folder(inventory: str) -> Path:
    folder = Path(with_entry_files([inventory])[0]).parent
    if not folder.is_dir() or not Path(with_entry_files([inventory])[0]).is_file():
        _end(f"{inventory}: no such inventory; name a directory that holds hosts.py, such as inventories/prod")
    return folder


def _end(message: str) -> NoReturn:
    click.secho(message, fg="red", err=True)
    sys.exit(EXIT_ERROR)


@secrets.command()
@_command
def edit(inventory: str, store: Store) -> None:
    """Edit all secrets of INVENTORY in your editor; the text is in memory only."""
    del inventory
    with store.locked(wait=False):
        before = store.for_change()
        text = before.text
        while True:
            text = edited(text)
            if text == before.text:
                click.echo("nothing changed", err=True)
                return
            try:
                after = Document(text)
                break
            except SecretError as error:
                click.secho(str(error), fg="red", err=True)
                if not (sys.stdin.isatty() and click.confirm("Edit again?", default=True, err=True)):
                    _end("nothing is changed")
        store.write(after)
    names = sorted(set(before.values.items()) ^ set(after.values.items()))
    click.echo(f"changed: {', '.join(sorted({name for name, _ in names})) or 'comments'}", err=True)


@secrets.command("set")
@_command
@click.argument("name")
def set_command(inventory: str, store: Store, name: str) -> None:
    """Set the secret NAME: asked for on a terminal, else read from standard input (one newline at the end is dropped).

    Never give a value as an argument: everyone on the machine can read those.
    """
    check_name(name)
    if sys.stdin.isatty():
        value = click.prompt(f"Value of {name}", hide_input=True, confirmation_prompt=True, err=True)
    else:
        try:
            value = sys.stdin.buffer.read().decode().removesuffix("\n")
        except UnicodeDecodeError:
            _end("the value is not UTF-8 text")
    demand = _demands(inventory, quiet=True).get(name)
    if demand and (problem := demand.problem(value)):
        _end(f"secret {name} ({', '.join(demand.fields)}): {problem}")
    with store.locked():
        store.write(store.for_change().with_values({name: value}))
    click.echo(f"{name} is set", err=True)


@secrets.command()
@_command
@click.argument("name")
def get(inventory: str, store: Store, name: str) -> None:
    """Print the secret NAME."""
    del inventory
    click.echo(store.value(name))


@secrets.command("list")
@_command
def list_command(inventory: str, store: Store) -> None:
    """List the names in the store and which settings ask for them; no values."""
    wanted = _demands(inventory)
    names = store.document().values
    table = Table(box=None, pad_edge=False)
    for column in ("secret", "kind", "asked for by"):
        table.add_column(column, overflow="fold")
    for name in sorted({*names, *wanted}):
        demand = wanted.get(name)
        fields = ", ".join(demand.fields) if demand else "nobody"
        table.add_row(name, str(demand.shape) if demand else "", fields + ("" if name in names else "  (missing)"))
    Console().print(table)


@secrets.command()
@_command
def generate(inventory: str, store: Store) -> None:
    """Make every secret that settings ask for and the store lacks; what is there is left alone.

    Exit code 1 when some are left that only a person can give.
    """
    wanted = _demands(inventory)
    with store.locked():
        before = store.for_change()
        lacking = missing(wanted, before.values)
        made = {name: demand.shape.make() for name, demand in lacking.items() if demand.shape.can_be_made}
        if made or not store.exists:
            store.write(before.with_values(made))
    for name in made:
        click.echo(f"made {name} ({wanted[name].shape}) for {', '.join(wanted[name].fields)}", err=True)
    given = [name for name in lacking if name not in made]
    for name in given:
        click.secho(
            f"{name} is for you to give ({', '.join(wanted[name].fields)}): gpurack secrets set {inventory} {name}",
            fg="yellow",
            err=True,
        )
    if not lacking:
        click.echo("nothing is missing", err=True)
    sys.exit(EXIT_FINDINGS if given else 0)


@secrets.command()
@_command
@click.argument("names", nargs=-1, required=True)
@click.option("--force", is_flag=True, help="Even where a new value loses data.")
def rotate(inventory: str, store: Store, names: tuple[str, ...], *, force: bool) -> None:
    """Replace secrets by new random ones; the next run of pyinfra brings them to the hosts."""
    wanted = _demands(inventory)
    with store.locked():
        before = store.for_change()
        for name in names:
            if name not in before.values:
                store.value(name)  # which says what is wrong, and which name is near
            demand = wanted.get(name)
            if demand is None or not demand.shape.can_be_made:
                _end(f"secret {name}: no setting says how to make it; gpurack secrets set {inventory} {name}")
            if demand.shape.keep and not force:
                _end(f"secret {name}: not rotated: {demand.shape.keep}; --force does it all the same")
        store.write(before.with_values({name: wanted[name].shape.make() for name in names}))
    click.echo(f"rotated: {', '.join(names)}; now run pyinfra {inventory} deploys/", err=True)


@secrets.command()
@_command
def rekey(inventory: str, store: Store) -> None:
    """Encrypt the store to those who are in recipients.txt now.

    Whoever was removed still knows what they have read: rotate those secrets too.
    """
    del inventory
    with store.locked():
        document = store.document()
        added, removed = store.drift(document)
        store.write(document)
    for recipient in added:
        click.echo(f"+ {recipient}", err=True)
    for key in removed:
        click.echo(f"- {key}", err=True)
    click.echo(f"{store.path} is encrypted to {len(store.recipients())} recipients", err=True)
    if removed:
        click.secho("those removed know the secrets as they are; rotate them", fg="yellow", err=True)


@secrets.command()
@_command
def check(inventory: str, store: Store) -> None:
    """Say what is missing, unfit or unused in the store, and who can read it.

    Exit code 1 when something is missing or unfit, or the recipients have changed.
    """
    wanted = _demands(inventory)
    document = store.document()
    findings = [
        f"missing: {name} ({demand.shape}), asked for by {', '.join(demand.fields)}"
        for name, demand in missing(wanted, document.values).items()
    ]
    for name, demand in wanted.items():
        if name in document.values and (problem := demand.problem(document.values[name])):
            findings.append(f"unfit: {name}: {problem}; asked for by {', '.join(demand.fields)}")
    added, removed = store.drift(document)
    findings += [f"recipient not yet able to read, run rekey: {recipient}" for recipient in added]
    findings += [f"removed from the recipients, but still able to read, run rekey: {key}" for key in removed]
    for recipient in store.recipients():
        if recipient not in added:
            click.echo(f"recipient: {recipient}")
    for name in document.values:
        if name not in wanted:
            click.echo(f"unused: {name}")
    for finding in findings:
        click.secho(finding, fg="red")
    click.echo(f"{len(document.values)} secrets, {len(findings)} findings")
    sys.exit(EXIT_FINDINGS if findings else 0)


def _demands(inventory: str, *, quiet: bool = False) -> dict[str, Demand]:
    """Return what settings ask for; with ``quiet``, nothing where the inventory cannot be loaded."""
    try:
        found, unknown = demands(load(inventory))
    except InventoryError:
        if quiet:
            return {}
        raise
    if unknown and not quiet:
        click.secho(
            f"left out, because their settings are wrong in something else: {', '.join(unknown)}; see gpurack check",
            fg="yellow",
            err=True,
        )
    return found
