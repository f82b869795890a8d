"""``gpurack check``: what an inventory would make of each host, worked out offline."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from pyinfra.api.inventory import Inventory
from rich.console import Console
from rich.table import Table

from gpurack.problems import masked
from gpurack.settings import Location, Merged, layers_of, merge, role_models


def show(inventory: Inventory, console: Console, *, everything: bool = False) -> None:
    """Print each host's roles and settings, with the place every value comes from.

    Args:
        inventory: an inventory without problems.
        console: where to print.
        everything: show defaults too, not only what the inventory sets.
    """
    for host in inventory:
        layers = layers_of(host)
        groups = ", ".join(group for group in host.groups if group != "all")
        table = Table(title=f"{host.name} ({groups})", title_justify="left", box=None, pad_edge=False)
        for column in ("role", "setting", "value", "from"):
            table.add_column(column, overflow="fold")
        for role, model in role_models().items():
            merged = merge(layers, role, model)
            settings = model.model_validate(merged.values)
            if not settings.enabled:
                table.add_row(role, "(not applied)", "", _origin(merged, ("enabled",)))
                continue
            rows = [(name, value) for name, value in _rows(settings, merged, everything=everything)]
            for number, (name, value) in enumerate(rows or [("(defaults)", "")]):
                origin = _origin(merged, (name,)) if value else ""
                table.add_row(role if number == 0 else "", name, value, origin)
        console.print(table)
        console.print()


def _rows(settings: BaseModel, merged: Merged, *, everything: bool) -> list[tuple[str, str]]:
    rows = []
    for name in type(settings).model_fields:
        if name == "enabled" or not (everything or name in merged.values):
            continue
        rows.append((name, masked((name,), _plain(getattr(settings, name)), type(settings))))
    return rows


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple) and value and all(isinstance(item, BaseModel) for item in value):
        return [next(iter(item.model_dump().values())) for item in value]
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    return str(value) if not isinstance(value, list | tuple | dict | bool | int | str) else value


def _origin(merged: Merged, location: Location) -> str:
    layer = merged.origin(location) if location[0] in merged.values else None
    return layer.name if layer else "default"
