"""``gpurack lab``: disposable hosts on this machine."""

from __future__ import annotations

import os
import re
import sys
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from gpurack import lab as hosts_of
from gpurack.lab.demo import demo
from gpurack.lab.machine import LabError, Machine
from gpurack.lab.rootfs import RootfsError
from gpurack.lab.vagrant import vagrant_test

RELEASE = click.Choice(list(hosts_of.RELEASES))


class DeviceId(click.ParamType[str]):
    """A PCI device id in four hexadecimal digits."""

    name = "device id"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return it in lower case."""
        if not re.fullmatch("[0-9a-fA-F]{4}", value):
            self.fail(f"{value!r} is no PCI device id: four hexadecimal digits, such as 2684", param, ctx)
        return value.lower()


class LabGroup(click.Group):
    """A group whose commands report what the lab cannot do in one line, with exit code 2."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except (LabError, RootfsError) as error:
            click.secho(str(error), fg="red", err=True)
            sys.exit(2)


@click.group(cls=LabGroup)
def lab() -> None:
    """Disposable Debian hosts on this machine: for tests, demonstrations and trying an inventory."""


lab.add_command(demo)
lab.add_command(vagrant_test)


@lab.command()
@click.argument("names", nargs=-1)
@click.option("--release", default="trixie", show_default=True, type=RELEASE)
@click.option("--driver", default="nspawn", show_default=True, type=click.Choice(list(hosts_of.DRIVERS)))
@click.option(
    "--card", "cards", multiple=True, type=DeviceId(), help="PCI id of a pretended NVIDIA card, such as 2684."
)
@click.option("--nvswitches", default=0, type=click.IntRange(0, 12), help="Number of pretended NVSwitch bridges.")
def up(names: tuple[str, ...], release: str, driver: str, cards: tuple[str, ...], nvswitches: int) -> None:
    """Boot hosts (gpu1 when none is named); they come up in the lab inventory."""
    for machine in hosts_of.up(names or ("gpu1",), release=release, driver=driver, cards=cards, nvswitches=nvswitches):
        click.echo(f"{machine.name}: Debian {release} at {machine.address} port {machine.port}")
    click.echo("next: pyinfra inventories/lab deploys/")


@lab.command()
@click.argument("names", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Those of running tests too.")
def down(names: tuple[str, ...], *, everything: bool) -> None:
    """Remove hosts, and all there is of them (all but those of running tests when none is named)."""
    there = hosts_of.hosts()
    if unknown := set(names) - {machine.name for machine in there}:
        raise LabError(f"no lab host {', '.join(sorted(unknown))}; gpurack lab list names them")
    wanted = [m for m in there if m.name in names or (not names and (everything or m.owner is None))]
    hosts_of.down(wanted)
    for machine in wanted:
        click.echo(f"{machine.name}: removed")


@lab.command("list")
def list_hosts() -> None:
    """List the hosts there are."""
    table = Table("name", "release", "driver", "address", "state", "belongs to", box=None, pad_edge=False)
    for machine in hosts_of.hosts():
        state = "running" if machine.running else "off"
        owner = f"process {machine.owner}" if machine.owner else ""
        place = f"{machine.address}:{machine.port}"
        table.add_row(machine.name, machine.release, machine.driver, place, state, owner)
    Console().print(table)


@lab.command(context_settings={"ignore_unknown_options": True})
@click.argument("name")
@click.argument("command", nargs=-1)
def ssh(name: str, command: tuple[str, ...]) -> None:
    """Log in to a host, or run a command on it."""
    [machine] = _named(name)
    line = machine.ssh_command(*(() if command else ("-t",)))
    os.execvp(line[0], [*line, *command])  # noqa: S606 - the terminal becomes that session


def _named(name: str) -> list[Machine]:
    found = [machine for machine in hosts_of.hosts() if machine.name == name]
    if not found:
        raise LabError(f"no lab host {name}; gpurack lab list names them")
    return found
