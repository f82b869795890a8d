"""Everything wrong with an inventory, found without touching a host."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_origin, get_type_hints

from pydantic import BaseModel, SecretBytes, SecretStr, ValidationError
from pydantic_core import ErrorDetails
from pyinfra.api.arguments import all_global_arguments
from pyinfra.api.host import Host
from pyinfra.api.inventory import Inventory
from pyinfra.connectors.ssh import ConnectorData

from gpurack.catalogue import CatalogueError, catalogue
from gpurack.images import ImageSource
from gpurack.names import nearest
from gpurack.secrets import Secret, SecretError, within
from gpurack.settings import (
    SHARED_BLOCKS,
    Layer,
    Location,
    Merged,
    RoleSettings,
    layers_of,
    merge,
    role_models,
    shared_blocks,
)

SECRET_NAME = re.compile(r"pass(word|phrase|wd)|secret|token|private|credential", re.IGNORECASE)
CONNECTION_KEYS = frozenset(get_type_hints(ConnectorData))
ARGUMENT_KEYS = frozenset(name for name, _ in all_global_arguments())
HOST_KEY_CHECKING = ("yes", "accept-new", "ask", "no", "off")


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        file: where to look, with the repository's root as the starting point.
        field: dotted path of the setting, such as ``docker.log_max_size_mib``.
        value: what was found, already masked if it may be secret; empty when there is no value.
        message: what is wrong and what is allowed.
        hosts: the hosts it concerns.
    """

    file: str
    field: str
    value: str
    message: str
    hosts: tuple[str, ...] = ()

    def __str__(self) -> str:
        value = f" = {self.value}" if self.value else ""
        hosts = f" [{', '.join(self.hosts)}]" if self.hosts else ""
        return f"{self.file}{hosts}: {self.field}{value}: {self.message}"


def problems_in(inventory: Inventory, path: str) -> list[Problem]:
    """Return every problem of an inventory; one that several hosts share is reported once, with all their names.

    Args:
        inventory: the loaded inventory.
        path: the inventory's file, which says where its group data is.
    """
    found: dict[Problem, list[str]] = {}
    for host in inventory:
        for problem in _problems_of(host, Path(path)):
            hosts = found.setdefault(problem, [])
            if host.name not in hosts:  # a shared block is looked at by every role that has it
                hosts.append(host.name)
    shared = [replace(problem, hosts=tuple(hosts)) for problem, hosts in found.items()]
    return [*_catalogue_problems(), *_group_files_without_group(inventory, Path(path)), *shared]


def _catalogue_problems() -> Iterator[Problem]:
    """Yield what is wrong with ``images.toml``, if a role needs it."""
    if not any("images" in shared_blocks(model) for model in role_models().values()):
        return
    try:
        catalogue()
    except CatalogueError as error:
        file, _, rest = str(error).partition(": ")
        field, _, message = rest.partition(": ")
        yield Problem(file, field, "", message) if message else Problem(file, "images", "", field)


def _problems_of(host: Host, path: Path) -> Iterator[Problem]:
    layers = layers_of(host)
    for layer in layers:
        yield from _unknown_names(layer, path)
    yield from _connection_problems(layers, path)
    data = {key: value for layer in layers for key, value in layer.data.items()}
    for role, model in role_models().items():
        merged = merge(layers, role, model)
        try:
            settings = model.model_validate(merged.values)
        except ValidationError as errors:
            for error in errors.errors(include_url=False):
                yield _from_pydantic(error, role, model, merged, path)
        else:
            if settings.enabled:
                found = (*_secrets_not_had(settings), *_image_problems(settings))
                for location, message in (*found, *settings.problems_on(host.name, data)):
                    layer = merged.origin(location) or layers[-2]
                    given = _value_at(merged.values, location)
                    value = "" if given is None else masked(location, given, model)
                    yield Problem(file_of(layer, path), _dotted(role, location, layer), value, message)


def _image_problems(settings: RoleSettings) -> Iterator[tuple[Location, str]]:
    images = getattr(settings, "images", None)
    if isinstance(images, ImageSource):
        try:
            for location, message in images.problems(settings.image_names):
                yield ("images", *location), message
        except CatalogueError as error:
            if "no image" in str(error):  # anything else is said once, of the file
                yield ("images",), f"the role needs an image that is not in the catalogue: {error}"


def _secrets_not_had(settings: RoleSettings) -> Iterator[tuple[Location, str]]:
    for location, secret in within(settings):
        try:
            secret.reveal()
        except SecretError as error:
            yield location, str(error)


def _unknown_names(layer: Layer, path: Path) -> Iterator[Problem]:
    roles = role_models()
    for key, value in layer.data.items():
        if key in SHARED_BLOCKS:
            if not isinstance(value, Mapping):
                example = next(iter(SHARED_BLOCKS[key].model_fields))
                yield Problem(
                    file_of(layer, path),
                    key,
                    masked((key,), value),
                    f'{key} is a dictionary, shared by all roles, such as {key} = {{"{example}": ...}}',
                )
        elif key in roles:
            if not isinstance(value, Mapping):
                example = next(iter(roles[key].model_fields))
                yield Problem(
                    file_of(layer, path),
                    key,
                    masked((key,), value),
                    f'the settings of role {key} are a dictionary, such as {key} = {{"{example}": ...}}',
                )
        elif key.startswith("ssh_"):
            if key not in CONNECTION_KEYS:
                yield Problem(
                    file_of(layer, path), key, "", f"unknown connection setting{nearest(key, CONNECTION_KEYS)}"
                )
        elif key.startswith("_"):
            if key not in ARGUMENT_KEYS:
                yield Problem(file_of(layer, path), key, "", f"unknown pyinfra argument{nearest(key, ARGUMENT_KEYS)}")
        elif isinstance(value, Mapping) or difflib.get_close_matches(key, [*roles, *SHARED_BLOCKS], n=1, cutoff=0.8):
            known = [*roles, *SHARED_BLOCKS]
            yield Problem(file_of(layer, path), key, "", f"no role of this name{nearest(key, known)}")


def _connection_problems(layers: list[Layer], path: Path) -> Iterator[Problem]:
    origin = {key: layer for layer in layers for key in layer.data}
    data = {key: value for layer in layers for key, value in layer.data.items()}

    def problem(key: str, message: str) -> Problem:
        return Problem(file_of(origin[key], path), key, masked((key,), data[key]), message)

    port = data.get("ssh_port")
    if port is not None and not (str(port).isdecimal() and 0 < int(port) < 65536):
        yield problem("ssh_port", "a port is a whole number from 1 to 65535")
    checking = data.get("ssh_strict_host_key_checking")
    if checking is not None and checking not in HOST_KEY_CHECKING:
        yield problem("ssh_strict_host_key_checking", f"expected one of {', '.join(HOST_KEY_CHECKING)}")
    for key in ("ssh_key", "ssh_config_file", "ssh_known_hosts_file"):
        if data.get(key) and not Path(str(data[key])).expanduser().is_file():
            yield problem(key, "no such file on this machine")


def _group_files_without_group(inventory: Inventory, path: Path) -> Iterator[Problem]:
    if not path.is_file():
        return
    groups = {"all", *(name for name in inventory.groups if inventory.groups[name])}
    for file in sorted((path.parent / "group_data").glob("*.py")):
        if file.stem not in groups:
            yield Problem(
                str(file), file.stem, "", f"{path} has no hosts in a group of this name{nearest(file.stem, groups)}"
            )


def _from_pydantic(error: ErrorDetails, role: str, model: type[RoleSettings], merged: Merged, path: Path) -> Problem:
    location = tuple(part for part in error["loc"] if not _is_type_tag(part))
    message = error["msg"]
    if error["type"] == "extra_forbidden" and len(location) == 1 and location[0] in model.moved:
        message = f"no longer a setting of this role: {model.moved[str(location[0])]}"
    elif error["type"] == "extra_forbidden":
        message = f"unknown setting{nearest(str(location[-1]), _fields_at(model, location[:-1]))}"
    elif error["type"] == "missing":
        message = "required, and has no default"
    message = message.removeprefix("Value error, ").removeprefix("Assertion failed, ")
    layer = merged.origin(location)
    value = "" if error["type"] in {"missing", "extra_forbidden"} else masked(location, error["input"], model)
    return Problem(file_of(layer, path) if layer else str(path), _dotted(role, location, layer), value, message)


def _is_type_tag(part: str | int) -> bool:
    """Tell pydantic's own parts of a location ("function-after[...]", "str") from field names and indexes."""
    return isinstance(part, str) and (part.endswith("]") or part in {"str", "int", "bool", "nullable"})


def _fields_at(model: type[BaseModel], location: Location) -> Iterable[str]:
    """Return the field names a model knows at a location, going down through models and lists of models."""
    current: Any = model
    keyed = False  # whether the next part is the key of a dictionary of models
    for part in location:
        if keyed:
            keyed = False
        elif isinstance(part, str) and isinstance(current, type) and issubclass(current, BaseModel):
            field = current.model_fields.get(part)
            current = next(_models_in(field.annotation), None) if field else None
            keyed = field is not None and get_origin(field.annotation) is dict
    return current.model_fields if isinstance(current, type) and issubclass(current, BaseModel) else ()


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from _models_in(argument)


def _annotation_is_secret(model: type[BaseModel] | None, location: Location) -> bool:
    current: type[BaseModel] | None = model
    for part in location:
        if current is None or not isinstance(part, str) or part not in current.model_fields:
            continue
        annotation = current.model_fields[part].annotation
        if any(kind.__name__ in str(annotation) for kind in (SecretStr, SecretBytes, Secret)):
            return True
        current = next(_models_in(annotation), None)
    return False


def masked(location: Location, value: Any, model: type[BaseModel] | None = None) -> str:
    """Return a value for a message: secrets as asterisks, mappings by their keys, long values shortened."""
    if any(isinstance(part, str) and SECRET_NAME.search(part) for part in location):
        return "********"
    if _annotation_is_secret(model, location) or isinstance(value, SecretStr | SecretBytes | Secret):
        return "********"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: ..." for key in value) + "}"
    if isinstance(value, list | tuple | set) and any(isinstance(item, Mapping) for item in value):
        return f"[{len(value)} entries]"
    text = repr(value)
    return text if len(text) <= 80 else text[:76] + " ..."


def file_of(layer: Layer, path: Path) -> str:
    """Return where a layer's data is written."""
    if layer.name == "command line":
        return "command line (--data)"
    kind, _, name = layer.name.partition(" ")
    if kind == "host" or not path.is_file():
        return str(path)
    candidates = [path.parent / "group_data" / f"{name}.py", Path("group_data") / f"{name}.py"]
    return str(next((file for file in candidates if file.is_file()), path))


def _dotted(role: str, location: Location, layer: Layer | None) -> str:
    """Return a location as it is written in an inventory: a shared block is not below the role."""
    text = "" if layer and layer.block else role
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.removeprefix(".")


def _value_at(values: Any, location: Location) -> Any:
    for part in location:
        try:
            values = values[part]
        except (KeyError, IndexError, TypeError):
            return None
    return values
