"""The command ``gpurack doctor``."""

from __future__ import annotations

import sys

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from gpurack.doctor.examine import Examination, examine
from gpurack.doctor.report import as_json, as_report, show
from gpurack.fleet import selected
from gpurack.preflight import inventory_or_exit

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
    loaded = inventory_or_exit(inventory)
    limit = [*hosts, *limits]
    try:
        number = len(selected(loaded, limit))
    except LookupError as error:
        raise click.UsageError(str(error.args[0])) from error
    examinations: list[Examination] = []
    # Progress goes to standard error, so that JSON and a report in a file stay what they are.
    with Progress(
        TextColumn("examining"), BarColumn(), MofNCompleteColumn(), console=Console(stderr=True), transient=True
    ) as progress:
        task = progress.add_task("", total=number)
        for item in examine(loaded, inventory, limit):
            examinations.append(item)
            progress.advance(task)
    if json_:
        click.echo(as_json(as_report(inventory, examinations)))
    else:
        # In a file or a pipe, lines are not broken where a terminal would end.
        console = Console(width=None if sys.stdout.isatty() else 500)
        for item in examinations:
            show(item, console)
    sys.exit(exit_code(examinations))


def exit_code(examinations: list[Examination]) -> int:
    """Return the exit code; a host that could not be examined is never a pass."""
    if not examinations or any(item.diagnosis is None for item in examinations):
        return EXIT_NOT_EXAMINED
    if any(item.diagnosis.findings for item in examinations if item.diagnosis):
        return EXIT_FINDINGS
    return EXIT_NOTHING_FOUND
