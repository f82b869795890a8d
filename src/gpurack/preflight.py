"""What every pyinfra run of this repository does first: called by ``config.py`` before pyinfra opens a connection."""

from __future__ import annotations

import sys
from typing import Any

import click
from pyinfra.api.inventory import Inventory
from pyinfra_cli.util import parse_cli_arg

from gpurack import hints
from gpurack.directories import with_entry_files
from gpurack.inventory import InventoryError, load
from gpurack.problems import problems_in

EXIT_WRONG_INVENTORY = 2


def preflight() -> None:
    """Stop the run with exit code 2 if the inventory is wrong, all problems listed; otherwise watch for known faults.

    Only deploys are stopped: facts, single commands and ``debug-inventory`` are how one looks into a problem.
    """
    context = click.get_current_context(silent=True)
    if context is None:  # config.py read by something else than the pyinfra command
        return
    options = context.params
    hints.watch()
    if all(str(operation).endswith(".py") for operation in options["operations"]):
        errors = errors_of(options["inventory"], override=_override(options), group_data=options["group_data"])
        if errors:
            report(errors)
            sys.exit(EXIT_WRONG_INVENTORY)


def errors_of(path: str, **options: Any) -> list[str]:
    """Return every problem of an inventory as a line of text; options as for :func:`gpurack.inventory.load`."""
    try:
        inventory = load(path, **options)
    except InventoryError as error:
        return [str(error)]
    return [str(problem) for problem in problems_in(inventory, with_entry_files([path])[0])]


def inventory_or_exit(path: str) -> Inventory:
    """Return the inventory at a path; with problems, print them all and end with exit code 2."""
    if errors := errors_of(path):
        report(errors)
        sys.exit(EXIT_WRONG_INVENTORY)
    return load(path)


def report(errors: list[str]) -> None:
    """Print problems to standard error, one line each."""
    for line in errors:
        click.secho(line, fg="red", err=True)
    number = f"{len(errors)} problem{'s' if len(errors) > 1 else ''}"
    click.echo(f"{number} in the inventory; nothing was connected to and nothing was changed.", err=True)


def _override(options: dict[str, Any]) -> dict[str, Any]:
    """Return the data given on pyinfra's command line, read as pyinfra reads it."""
    override = {}
    for argument in options["data"]:
        key, separator, value = argument.partition("=")
        if not separator:
            raise click.UsageError(f"--data {argument}: expected key=value")
        override[key] = parse_cli_arg(value)
    for key in ("ssh_user", "ssh_key", "ssh_key_password", "ssh_port", "ssh_password"):
        if options.get(key):
            override[key] = options[key]
    return override
