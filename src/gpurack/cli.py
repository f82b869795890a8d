"""The ``gpurack`` command: what is done beside ``pyinfra INVENTORY deploys/``."""

from __future__ import annotations

import json
import sys
from importlib.metadata import version

import click
from rich.console import Console
from rich.table import Table

from gpurack import check as offline
from gpurack import gpus
from gpurack.controls import Status
from gpurack.doctor.cli import doctor
from gpurack.images_cli import images
from gpurack.lab.cli import lab
from gpurack.preflight import inventory_or_exit
from gpurack.rollout.cli import rollout
from gpurack.secrets.cli import secrets
from gpurack.settings import role_models
from gpurack.verify import HostReport, verify

STYLES = {Status.PASS: "green", Status.FAIL: "red", Status.ERROR: "red", Status.NOT_APPLICABLE: "dim"}


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version("gpurack"), prog_name="gpurack")
def main() -> None:
    """Private LLM servers from bare GPU machines. Hosts are deployed with `pyinfra INVENTORY deploys/`."""
    sys.path.insert(0, ".")  # roles/ is found in the repository one works in, as pyinfra does it


main.add_command(lab)
main.add_command(doctor)
main.add_command(images)
main.add_command(rollout)
main.add_command(secrets)


@main.command()
@click.argument("inventory")
@click.option("--all", "everything", is_flag=True, help="Show default values too.")
def check(inventory: str, *, everything: bool) -> None:
    """Validate INVENTORY offline and print what each host would be.

    Exit code 0 when it is right, 2 when it is not.
    """
    offline.show(inventory_or_exit(inventory), Console(), everything=everything)


@main.command("verify")
@click.argument("inventory")
@click.option("--role", "roles", multiple=True, help="Only this role; may be given several times.")
@click.option("--all", "everything", is_flag=True, help="List controls that hold too.")
def verify_command(inventory: str, roles: tuple[str, ...], *, everything: bool) -> None:
    """Run every role's checks on the hosts of INVENTORY; nothing is changed.

    Exit code 0 when every control holds, 1 when one does not or a host cannot be checked, 2 for a wrong inventory.
    """
    if unknown := set(roles) - set(role_models()):
        raise click.UsageError(f"--role {', '.join(sorted(unknown))}: known are {', '.join(role_models())}")
    console = Console()
    reports = []
    for found in verify(inventory_or_exit(inventory), roles=roles):
        reports.append(found)
        _show(found, console, everything=everything)
    sys.exit(0 if all(found.ok for found in reports) else 1)


@main.command("gpus")
@click.argument("inventory")
@click.option("--json", "as_json", is_flag=True, help="Print all that is known, as JSON: a list of hosts.")
@click.option("--limit", multiple=True, help="Only this host or group, or those a pattern matches; may be repeated.")
def gpus_command(inventory: str, limit: tuple[str, ...], *, as_json: bool) -> None:
    """Show the GPUs of the hosts of INVENTORY; nothing is changed.

    Cards are listed from the PCI bus where no driver answers.

    Exit code 0 when every host was read, 1 when one could not be, 2 for a wrong inventory.
    """
    try:
        found = list(gpus.gpus(inventory_or_exit(inventory), limit=limit))
    except LookupError as error:
        raise click.UsageError(f"--limit: {error.args[0]}") from error
    if as_json:
        click.echo(json.dumps([host.model_dump(mode="json") for host in found], indent=1))
    else:
        gpus.show(found, Console())
    sys.exit(1 if any(host.error for host in found) else 0)


def _show(found: HostReport, console: Console, *, everything: bool) -> None:
    if found.unreachable:
        console.print(f"{found.host}: cannot be checked: {found.unreachable}", style="red", markup=False)
        return
    count = {status: sum(result.status is status for result in found.results) for status in Status}
    console.print(f"{found.host}: " + ", ".join(f"{number} {status.value}" for status, number in count.items()))
    table = Table(box=None, pad_edge=False, show_header=False)
    for result in found.results:
        if everything or result.status in {Status.FAIL, Status.ERROR}:
            style = STYLES[result.status]
            table.add_row(result.control.id, f"[{style}]{result.status.value}[/]", result.control.title, result.message)
    if table.row_count:
        console.print(table)
