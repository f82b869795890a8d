"""``gpurack capacity``: what the models of an inventory need, and whether its hosts have it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

import click
from pyinfra.api.host import Host
from pyinfra.api.inventory import Inventory
from rich.console import Console

from gpurack.capacity.hardware import Hardware, HardwareError
from gpurack.capacity.plan import HostPlan, plan
from gpurack.capacity.recommend import recommend
from gpurack.capacity.report import as_json, show, show_comparison, show_recommendation
from gpurack.capacity.situations import declared_hardware, read_hardware, situation
from gpurack.facts.capacity import ModelRoom
from gpurack.facts.gpu import Nvml, PciDevices
from gpurack.fleet import HostError, connection, on_each, read, selected
from gpurack.preflight import inventory_or_exit
from gpurack.settings import settings_for

if TYPE_CHECKING:
    from roles.ollama.settings import OllamaSettings

Source = Literal["auto", "read", "declared"]
PIPE_WIDTH = 240


def plans(
    inventory: Inventory, *, limit: Sequence[str] = (), source: Source = "auto"
) -> Iterator[HostPlan | tuple[str, str]]:
    """Yield each host's plan, or its name and why there is none; nothing is changed.

    Args:
        inventory: an inventory without problems.
        limit: see :func:`gpurack.fleet.selected`.
        source: where hardware is from: the host, the inventory, or the inventory where a host cannot be read.

    Raises:
        LookupError: an entry of ``limit`` selects no host.
    """
    if source == "declared":
        yield from (_plan_of(host, source) for host in selected(inventory, limit))
    else:
        yield from on_each(inventory, lambda host: _plan_of(host, source), limit=limit)


def _plan_of(host: Host, source: Source) -> HostPlan | tuple[str, str]:
    from roles.capacity.settings import CapacitySettings
    from roles.ollama.settings import OllamaSettings
    from roles.ollama_models.settings import OllamaModelsSettings

    server, capacity = settings_for(host, OllamaSettings), settings_for(host, CapacitySettings)
    try:
        if source == "declared":
            hardware = declared_hardware(capacity, server)
            if hardware is None:
                return host.name, "no hardware is declared for it: set capacity.hardware"
        else:
            hardware = _read(host, server, None if source == "read" else declared_hardware(capacity, server))
    except (HostError, HardwareError) as error:
        hint = "" if source != "auto" or capacity.hardware else "; to plan without it, declare capacity.hardware"
        return host.name, f"{error}{hint}"
    models = settings_for(host, OllamaModelsSettings)
    if not models.enabled:
        models = models.model_copy(update={"models": {}})
    return plan(host.name, situation(models, server, capacity, hardware))


def _read(host: Host, server: OllamaSettings, instead: Hardware | None) -> Hardware:
    """Return a host's hardware; what is declared where it cannot be reached.

    Raises:
        HostError: it cannot be read, and nothing is declared.
        HardwareError: its GPUs cannot be planned with.
    """
    try:
        with connection(host):
            room = read(host, ModelRoom, models_dir=server.models_dir)
            pci, nvml = read(host, PciDevices), read(host, Nvml)
    except HostError:
        if instead is None:
            raise
        return instead
    return read_hardware(server, room, pci, nvml)


@click.command()
@click.argument("inventory")
@click.option("--limit", multiple=True, help="Only this host or group, or those a pattern matches; may be repeated.")
@click.option("--json", "as_json_", is_flag=True, help="Print JSON, schema gpurack.capacity/1; all sizes in bytes.")
@click.option("--people", type=click.IntRange(1, 1_000_000), help="Recommend a model for so many people, on each host.")
@click.option(
    "--hardware",
    type=click.Choice(["auto", "read", "declared"]),
    default="auto",
    show_default=True,
    help="Read it from the hosts, or take what capacity.hardware declares, without connecting; "
    "auto: declared where a host cannot be reached.",
)
def capacity(inventory: str, limit: tuple[str, ...], people: int | None, hardware: Source, *, as_json_: bool) -> None:
    """Say whether the models of INVENTORY fit its hosts, and what would make them fit; nothing is changed.

    Exit code 0 when everything fits, 1 when something does not or a host cannot be planned, 2 for a wrong inventory.
    """
    try:
        found = list(plans(inventory_or_exit(inventory), limit=limit, source=hardware))
    except LookupError as error:
        raise click.UsageError(f"--limit: {error.args[0]}") from error
    made = [item for item in found if isinstance(item, HostPlan)]
    errors = dict(item for item in found if not isinstance(item, HostPlan))
    advice = {item.host: recommend(item.situation, people) for item in made} if people else {}
    if as_json_:
        click.echo(json.dumps(as_json(made, errors, advice), indent=1))
    else:
        console = Console(width=None if sys.stdout.isatty() else PIPE_WIDTH)
        for item in made:
            show(item, console)
            if people:
                show_recommendation(advice[item.host], console)
            console.print()
        for name, reason in errors.items():
            console.print(f"{name}: cannot be planned: {reason}", style="red", markup=False, soft_wrap=True)
        if people:
            show_comparison(console)
    sys.exit(0 if not errors and all(item.ok for item in made) else 1)
