"""Which secrets of the store the settings of an inventory ask for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pydantic import ValidationError
from pyinfra.api.inventory import Inventory

from gpurack.secrets.errors import SecretError
from gpurack.secrets.secret import within
from gpurack.secrets.shape import Shape
from gpurack.settings import layers_of, merge, role_models


@dataclass
class Demand:
    """A secret of the store that settings ask for.

    Attributes:
        shape: the strictest shape asked for.
        fields: the settings that ask, such as ``anythingllm.jwt_secret``, each once.
    """

    shape: Shape
    fields: list[str] = field(default_factory=list)

    def problem(self, value: str) -> str:
        """Return why a value does not fit; empty if it does."""
        return self.shape.problem(value)


def demands(inventory: Inventory) -> tuple[dict[str, Demand], list[str]]:
    """Return the secrets that enabled roles ask of the store, by name, and the roles that could not be asked.

    Roles whose settings are wrong in something else are left out, and named: ``gpurack check`` tells what it is.

    Raises:
        SecretError: two settings want one secret in shapes that exclude each other.
    """
    found: dict[str, Demand] = {}
    unknown: dict[str, None] = {}
    for host in inventory:
        layers = layers_of(host)
        for role, model in role_models().items():
            values = merge(layers, role, model).values
            try:
                settings = model.model_validate(values)
            except ValidationError:
                if values.get("enabled", True) is not False:
                    unknown[role] = None
                continue
            if not settings.enabled:
                continue
            for location, secret in within(settings):
                if secret.store_name:
                    _add(found, secret.store_name, secret.shape, dotted(role, location))
    return found, list(unknown)


def dotted(role: str, location: tuple[str | int, ...]) -> str:
    """Return a setting's path, such as ``role.field[0].name``."""
    return role + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)


def _add(found: dict[str, Demand], name: str, shape: Shape, asked_by: str) -> None:
    demand = found.setdefault(name, Demand(shape))
    if asked_by not in demand.fields:
        demand.fields.append(asked_by)
    kinds = {demand.shape.kind, shape.kind}
    if len(kinds - {"given"}) > 1:
        raise SecretError(f"secret {name}: {', '.join(demand.fields)} want different kinds: {', '.join(sorted(kinds))}")
    wanted = max((demand.shape, shape), key=lambda item: (item.can_be_made, item.size))
    keep = demand.shape.keep or shape.keep
    demand.shape = Shape(wanted.kind, wanted.size, keep)


def missing(wanted: Mapping[str, Demand], values: Mapping[str, str]) -> dict[str, Demand]:
    """Return what is asked for and not in the store."""
    return {name: demand for name, demand in wanted.items() if name not in values}
