"""``gpurack rollout``: a change goes to one host first, and on to the others only if that one holds."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict

import click
from rich.console import Console
from rich.table import Table

from gpurack.preflight import inventory_or_exit
from gpurack.rollout.run import RolloutError, put_back, roll_out, stages_of
from gpurack.rollout.trial import Verdict


@click.command()
@click.argument("inventory")
@click.argument("deploys", nargs=-1)
@click.option("--canary", multiple=True, help="Host that goes first; default: the group `canary`, or the first host.")
@click.option("--limit", multiple=True, help="Only these hosts; may be repeated.")
@click.option("--serial", default=1, show_default=True, type=click.IntRange(1), help="Hosts at a time after it.")
@click.option("--json", "as_json", is_flag=True, help="Print what became of each host as JSON, last on stdout.")
@click.option("--roll-back", is_flag=True, help="Put back what the hosts of an unfinished roll-out served; no deploy.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
def rollout(
    inventory: str,
    deploys: tuple[str, ...],
    canary: tuple[str, ...],
    limit: tuple[str, ...],
    serial: int,
    *,
    as_json: bool,
    roll_back: bool,
    yes: bool,
) -> None:
    """Deploy INVENTORY in stages: a canary first, then the others, each tried before the next.

    DEPLOYS are what pyinfra is given after the inventory; without any, deploys/.

    On each host the declared models are asked; first-token time and speed are compared with the limits in
    ollama_models.acceptance, and the controls with what they said before. A stage that does not hold ends the roll-out,
    and its hosts serve again what they served before.

    Exit code 0 when every host holds, 1 when one did not, 2 for a wrong inventory or wrong arguments.
    """
    loaded = inventory_or_exit(inventory)
    console = Console(stderr=as_json)
    try:
        stages = stages_of(loaded, canary=canary, limit=limit, serial=serial)
    except RolloutError as error:
        click.secho(str(error), fg="red", err=True)
        sys.exit(2)
    if roll_back:
        names = [name for stage in stages for name in stage.hosts] if limit else list(stages[0].hosts)
        _confirm(f"Put back what {', '.join(names)} served before?", yes=yes)
        outcome = put_back(loaded, names)
        for name, failure in outcome.items():
            console.print(f"{name}: {failure or 'serves again what it served before'}", markup=False, highlight=False)
        sys.exit(1 if any(outcome.values()) else 0)
    for stage in stages:
        console.print(f"{stage.title}: {', '.join(stage.hosts)}", markup=False, highlight=False)
    _confirm("Begin?", yes=yes)
    verdicts = list(
        roll_out(loaded, inventory, deploys or ("deploys/",), stages, lambda line: console.rule(line, align="left"))
    )
    show(verdicts, console)
    left = [name for stage in stages for name in stage.hosts if name not in {item.host for item in verdicts}]
    holds = all(item.holds for item in verdicts) and not left
    if left:
        console.print(f"not touched: {', '.join(left)}", markup=False, highlight=False)
    if as_json:
        click.echo(json.dumps({"holds": holds, "hosts": [asdict(item) for item in verdicts], "not_touched": left}))
    sys.exit(0 if holds else 1)


def _confirm(question: str, *, yes: bool) -> None:
    if not yes and not click.confirm(question):
        sys.exit(2)


def show(verdicts: Sequence[Verdict], console: Console) -> None:
    """Print what was measured, and why a host does not hold."""
    table = Table("host", "model", "first token", "tokens/s", "answer", box=None, pad_edge=False)
    for trial in (trial for item in verdicts for trial in item.trials):
        first, speed = trial.first_token_ms, trial.tokens_per_second
        text = next((answer.text for answer in trial.answers if answer.text), "")
        table.add_row(
            trial.host,
            trial.model,
            "" if first is None else f"{first:.0f} ms",
            "" if speed is None else f"{speed:.1f}",
            " ".join("".join(char if char.isprintable() else " " for char in text[:60]).split()),
        )
    if table.row_count:
        console.print(table)
    for item in verdicts:
        for failure in item.failures:
            console.print(f"{item.host}: {failure}", style="red", markup=False, highlight=False)
        if item.holds:
            console.print(f"{item.host}: holds", style="green", markup=False, highlight=False)
