"""The settings reference (docs/settings.md), generated from the roles' models so that it cannot disagree with them."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from enum import Enum
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from gpurack.secrets import Secret
from gpurack.settings import SHARED_BLOCKS, role_models, shared_blocks

HEADER = """\
# Settings

Written by `make docs` from the roles' models; do not edit. In `inventories/<name>/group_data/*.py` or in a host's own
entry in `hosts.py`, each role has one dictionary of this name: `docker = {"log_max_size_mib": 20}`. Host values
override group values, which override the defaults below, field by field.
"""

SHARED = """\

## {name}, for all roles

{summary} Written beside the roles, `{name} = {{"{example}": ...}}`; a role's own `{name}` overrides it, field by field.

| setting | type | default | |
|---|---|---|---|
"""


def reference() -> str:
    """Return the whole reference as Markdown."""
    parts = [HEADER]
    for name, model in SHARED_BLOCKS.items():
        summary = (model.__doc__ or "").strip().splitlines()[0]
        parts.append(SHARED.format(name=name, summary=summary, example=next(iter(model.model_fields))))
        parts += [f"| {' | '.join(row)} |\n" for row in _rows(model, "")]
    for role, model in role_models().items():
        summary = (model.__doc__ or "").strip().splitlines()[0]
        parts.append(f"\n## {role}\n\n{summary}\n\n| setting | type | default | |\n|---|---|---|---|\n")
        parts += [f"| {' | '.join(row)} |\n" for row in _rows(model, "")]
    return "".join(parts)


def _rows(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, str, str, str]]:
    shared = set(shared_blocks(model))
    for name, field in model.model_fields.items():
        if name in shared:
            yield f"`{prefix}{name}`", "dictionary", "as for all roles", f"See [{name}](#{name}-for-all-roles)."
            continue
        yield f"`{prefix}{name}`", _type(field.annotation), _default(field), _cell(field.description or "")
        for nested, suffix in _nested(field.annotation):
            yield from _rows(nested, f"{prefix}{name}{suffix}.")


def _nested(annotation: Any) -> Iterator[tuple[type[BaseModel], str]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation, ""
        return
    origin = get_origin(annotation)
    step = "[]" if origin in (list, tuple, set, frozenset) else ".<name>" if origin is dict else ""
    for argument in get_args(annotation):
        for model, suffix in _nested(argument):
            yield model, f"{step}{suffix}"


def _type(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return _cell(" or ".join(f"`{value}`" for value in arguments))
    if origin in (list, tuple, set, frozenset):
        return f"list of {_type(arguments[0])}"
    if origin is dict:
        return f"dictionary of {_type(arguments[1])}"
    if origin is not None and hasattr(annotation, "__metadata__"):
        return _type(arguments[0])
    if origin is Union or (arguments and type(None) in arguments):
        return " or ".join(_type(item) if item is not type(None) else "none" for item in arguments)
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return _cell(" or ".join(f"`{item.value}`" for item in annotation))
    if annotation is timedelta:
        return "duration"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "dictionary"
    names = {
        "str": "text",
        "int": "whole number",
        "bool": "true or false",
        "float": "number",
        "SecretStr": "secret",
        "Secret": "secret",
    }
    name = getattr(annotation, "__name__", str(annotation))
    return names.get(name, name)


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is PydanticUndefined:
        return "required"
    if isinstance(value, timedelta):
        return f"`{value}`"
    if isinstance(value, BaseModel):
        return "see below"
    if isinstance(value, Secret):
        return _cell(f"`{value.reference}`")
    if isinstance(value, Enum):
        value = value.value
    if value == {}:
        return "empty"
    if isinstance(value, list | tuple | set | frozenset):
        items = sorted(map(str, value)) if isinstance(value, set | frozenset) else [str(item) for item in value]
        return _cell(", ".join(f"`{item}`" for item in items)) or "empty"
    return _cell(f"`{value!r}`" if isinstance(value, bool | None) else f"`{value}`" if str(value) else "empty")


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    import sys

    sys.path.insert(0, ".")
    sys.stdout.write(reference())
