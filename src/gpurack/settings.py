"""Typed settings of roles: discovery of the models, and merging of an inventory's layers.

Every role has one pydantic model in ``roles/<role>/settings.py``. A value is looked for in the host's own data, then
in its groups' data, then in the data of ``all``, then in the model's defaults; mappings are merged field by field,
everything else, and a reference to a secret, is replaced as a whole. A shared block (``images``) is written once for
all roles: a role's field of that name starts from it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from gpurack.bundle.manifest import BundleError
from gpurack.bundle.settings import BundleSettings, images_in
from gpurack.images import ImageSource
from gpurack.ollama.pulled import PulledModel
from gpurack.secrets.secret import is_reference

if TYPE_CHECKING:
    from pyinfra.api.host import Host


Location = tuple[str | int, ...]
"""Where a value is in a role's settings: field names, and indexes of lists."""


def _mirror_url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname or re.search(r"\s", value):
        raise ValueError("expected a URL such as https://mirror.example.org/debian")
    if parts.query or parts.fragment or parts.username:
        raise ValueError("a mirror's URL has no user, query or fragment")
    return value.rstrip("/")


MirrorUrl = Annotated[str, AfterValidator(_mirror_url)]
"""URL of a repository or a mirror of it; a slash at its end is dropped."""


SHARED_BLOCKS: Mapping[str, type[BaseModel]] = {"images": ImageSource, "bundle": BundleSettings}
"""Settings at an inventory's top level that several roles have as a field: name -> model."""


def _second_or_more(value: timedelta) -> timedelta:
    if value < timedelta(seconds=1):
        raise ValueError("expected one second or more")
    return value


def _not_negative(value: timedelta) -> timedelta:
    if value < timedelta(0):
        raise ValueError("a duration cannot be negative")
    return value


Seconds = Annotated[timedelta, AfterValidator(_second_or_more)]
"""A duration that Compose and programs take in whole seconds: one at least."""

Duration = Annotated[timedelta, AfterValidator(_not_negative)]
"""A duration that may be nothing."""


class RoleSettings(BaseModel):
    """Base of every role's settings: unknown fields are errors, instances are immutable.

    Attributes:
        moved: fields of earlier releases -> where that is set now, for the message to those who still have them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    moved: ClassVar[Mapping[str, str]] = {}

    enabled: bool = Field(default=True, description="Apply the role to the host; turning it off removes nothing.")

    def problems_on(self, host: str, data: Mapping[str, Any]) -> Iterator[tuple[Location, str]]:
        """Yield what is wrong with these settings on one host, as (location of the field, message).

        For what a model alone cannot know: how gpurack connects to the host, or what another role is told.
        Overridden by roles that need it; nothing is read from the host itself.

        Args:
            host: name of the host in the inventory.
            data: the host's merged pyinfra data, with ``ssh_user`` and the raw settings of other roles.
        """
        del host, data
        yield from ()

    @property
    def image_names(self) -> tuple[str, ...]:
        """Names in ``images.toml`` of the images the role runs with these settings; for roles with ``images``."""
        return ()

    @property
    def models_pulled(self) -> tuple[PulledModel, ...]:
        """Models the role has from registries with these settings, for a bundle to have them."""
        return ()

    def packages_for(self, distribution: str, codename: str) -> tuple[str, ...]:
        """Return the packages the role installs from the distribution on a release, for a bundle to have them.

        Args:
            distribution: ``debian`` or ``ubuntu``.
            codename: of the release, such as ``trixie``.
        """
        del distribution, codename
        return ()


S = TypeVar("S", bound=RoleSettings)


@cache
def role_models(root: Path = Path()) -> dict[str, type[RoleSettings]]:
    """Return the settings model of each role found in ``roles/``, by role name.

    Raises:
        TypeError: a ``settings.py`` does not define exactly one :class:`RoleSettings` subclass.
    """
    models: dict[str, type[RoleSettings]] = {}
    for file in sorted((root / "roles").glob("*/settings.py")):
        role = file.parent.name
        module = import_module(f"roles.{role}.settings")
        found = [
            value
            for value in vars(module).values()
            if isinstance(value, type) and issubclass(value, RoleSettings) and value.__module__ == module.__name__
        ]
        if len(found) != 1:
            raise TypeError(f"{file}: expected exactly one RoleSettings subclass, found {len(found)}")
        models[role] = found[0]
    return models


@dataclass(frozen=True)
class Layer:
    """One source of data for a host: a group, ``all`` or the host's own entry.

    Attributes:
        name: ``group gpu``, ``host gpu1.example.org``, ``command line``.
        data: its top-level values.
        block: the shared block a role's value was taken from; None for the role's own values.
    """

    name: str
    data: Mapping[str, Any]
    block: str | None = None


def layers_of(host: Host) -> list[Layer]:
    """Return the layers of a pyinfra host's data, weakest first (pyinfra's own order of precedence).

    The images of the bundle in the settings, if there is one, come before all of them.
    """
    layers = _layers_of_data(host)
    path = merge(layers, "bundle").values.get("path")
    if isinstance(path, str | Path) and str(path):
        try:
            layers.insert(0, Layer(f"bundle {path}", {"images": {"archives": images_in(Path(path))}}))
        except BundleError:
            return layers  # reported of the block itself
    return layers


def _layers_of_data(host: Host) -> list[Layer]:
    inventory = host.inventory
    layers = [Layer("group all", inventory.get_data())]
    layers += [Layer(f"group {name}", inventory.get_group_data(name)) for name in host.groups if name != "all"]
    layers.append(Layer(f"host {host.name}", inventory.get_host_data(host.name)))
    layers.append(Layer("command line", inventory.get_override_data()))
    return layers


@dataclass
class Merged:
    """A role's merged raw values and, for every value, the layer it came from."""

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[Location, Layer] = field(default_factory=dict)

    def origin(self, location: Location) -> Layer | None:
        """Return the layer that set the value at a pydantic error location, or its nearest enclosing mapping."""
        for length in range(len(location), -1, -1):
            if layer := self.origins.get(location[:length]):
                return layer
        return None


def shared_blocks(model: type[BaseModel]) -> Iterator[str]:
    """Yield the names of the shared blocks a role's model has as a field."""
    for name, block in SHARED_BLOCKS.items():
        field = model.model_fields.get(name)
        if field is not None and field.annotation is block:
            yield name


def merge(layers: list[Layer], role: str, model: type[RoleSettings] | None = None) -> Merged:
    """Merge a role's mapping from every layer, later layers winning field by field.

    Args:
        layers: weakest first.
        role: name of the role.
        model: its settings; the shared blocks it has are merged first, so that the role's own values win.
    """
    merged = Merged()
    for block in shared_blocks(model) if model else ():
        for layer in layers:
            value = layer.data.get(block)
            if isinstance(value, Mapping):
                below = merged.values.setdefault(block, {})
                _overlay(below, value, replace(layer, block=block), (block,), merged.origins)
    for layer in layers:
        value = layer.data.get(role)
        if isinstance(value, Mapping):
            _overlay(merged.values, value, layer, (), merged.origins)
    return merged


def _overlay(
    target: dict[str, Any], source: Mapping[str, Any], layer: Layer, at: Location, origins: dict[Location, Layer]
) -> None:
    origins[at] = layer
    for key, value in source.items():
        here = (*at, key)
        if isinstance(value, Mapping):
            below = target.get(key)
            if not isinstance(below, dict) or (is_reference(below) and is_reference(value)):
                below = target[key] = {}
            _overlay(below, value, layer, here, origins)
        else:
            target[key] = value
            for stale in [path for path in origins if path[: len(here)] == here]:
                del origins[stale]
            origins[here] = layer


def settings_for(host: Host, model: type[S]) -> S:
    """Return a host's settings of one role.

    Raises:
        pydantic.ValidationError: a value is wrong. ``gpurack.preflight`` reports these before any connection.
    """
    role = model.__module__.split(".")[-2]
    return model.model_validate(merge(layers_of(host), role, model).values)


def settings_of(host: Host, role: str) -> Any:
    """Return a host's settings of a role by its name: for this package, which does not import the roles.

    Raises:
        KeyError: no role of that name.
        pydantic.ValidationError: see :func:`settings_for`.
    """
    return settings_for(host, role_models()[role])


def enabled_roles(host: Host) -> Iterator[tuple[str, RoleSettings]]:
    """Yield the name and settings of every role that is enabled for a host."""
    for role, model in role_models().items():
        settings = settings_for(host, model)
        if settings.enabled:
            yield role, settings
