"""The command ``gpurack doctor``."""

from __future__ import annotations

import sys
from fnmatch import fnmatch

import click
from pyinfra.api.host import Host
from pyinfra.api.inventory import Inventory
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from gpurack.directories import with_entry_files
from gpurack.doctor.examine import Examination, examine
from gpurack.doctor.report import as_json, as_report, show
from gpurack.inventory import InventoryError, load
from gpurack.preflight import EXIT_WRONG_INVENTORY, report
from gpurack.problems import problems_in

EXIT_NOTHING_FOUND = 0
EXIT_FINDINGS = 1
EXIT_NOT_EXAMINED = 2


@click.command()
@click.argument("inventory")
@click.argument("hosts", nargs=-1, metavar="[HOST]...")
@click.option("--limit", "limits", multiple=True, help="Only hosts of this name, pattern or group; as in pyinfra.")
@click.option("--json", "json_", is_flag=True, help="Print JSON, schema gpurack.doctor/1.")
def doctor(inventory: str, hosts: tuple[str, ...], limits: tuple[str, ...], *, json_: bool) -> None:
    """Say what is wrong with the GPU hosts of INVENTORY, why, and what cures it; nothing is changed.

    Tests everything from the PCI bus to the model's answer. What is named first is the cause.

    Exit code 0 when nothing was found, 1 with findings, 2 for a wrong inventory or a host that cannot be examined.
    """
    loaded = _load(inventory)
    chosen = select(loaded, [*hosts, *limits])
    examinations: list[Examination] = []
    # Progress goes to standard error, so that JSON and a report in a file stay what they are.
    with Progress(
        TextColumn("examining"), BarColumn(), MofNCompleteColumn(), console=Console(stderr=True), transient=True
    ) as progress:
        task = progress.add_task("", total=len(chosen))
        for item in examine(loaded, inventory, chosen):
            examinations.append(item)
            progress.advance(task)
    if json_:
        click.echo(as_json(as_report(inventory, examinations)))
    else:
        console = Console(soft_wrap=not sys.stdout.isatty())
        for item in examinations:
            show(item, console)
    sys.exit(exit_code(examinations))


def _load(path: str) -> Inventory:
    try:
        inventory = load(path)
        errors = [str(problem) for problem in problems_in(inventory, with_entry_files([path])[0])]
    except InventoryError as error:
        errors = [str(error)]
    if errors:
        report(errors)
        sys.exit(EXIT_WRONG_INVENTORY)
    return inventory


def select(inventory: Inventory, patterns: list[str]) -> list[Host]:
    """Return the hosts that any of some names, patterns or groups stand for; all when there are none.

    Raises:
        click.UsageError: one of them stands for no host.
    """
    everything = list(inventory)
    if not patterns:
        return everything
    chosen: set[str] = set()
    for pattern in patterns:
        found = {host.name for host in everything if pattern in host.groups or fnmatch(host.name, pattern)}
        if not found:
            names = ", ".join(host.name for host in everything[:10])
            raise click.UsageError(f"{pattern}: no host or group of that name in the inventory; there are {names}")
        chosen |= found
    return [host for host in everything if host.name in chosen]


def exit_code(examinations: list[Examination]) -> int:
    """Return the exit code; a host that could not be examined is never a pass."""
    if not examinations or any(item.diagnosis is None for item in examinations):
        return EXIT_NOT_EXAMINED
    if any(item.diagnosis.findings for item in examinations if item.diagnosis):
        return EXIT_FINDINGS
    return EXIT_NOTHING_FOUND
