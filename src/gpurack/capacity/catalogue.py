"""Models that are known without their file: the catalogue ``catalogue.toml`` beside this one."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from pydantic import BaseModel, ConfigDict

from gpurack.capacity.architecture import Architecture, Weights, weights
from gpurack.capacity.quants import FILE_TYPES
from gpurack.ollama.names import ModelName


class UnknownModelError(ValueError):
    """Nothing is known of a model's size; the message says what is needed."""


@dataclass(frozen=True)
class Profile:
    """What the planner knows of a model.

    Attributes:
        name: as declared.
        architecture: its dimensions.
        file_type: quantisation, such as ``Q4_K_M``; as the file says it where it was read from one.
        weights: bytes of its tensors.
        source: where the figures are from.
        note: what to beware of.
        smaller: names of the same model in smaller quantisations, largest first.
        lesser: names of the next smaller models of its family, largest first.
    """

    name: str
    architecture: Architecture
    file_type: str
    weights: Weights
    source: str
    note: str = ""
    smaller: tuple[str, ...] = ()
    lesser: tuple[str, ...] = ()


class Entry(BaseModel):
    """A model of the catalogue; fields as its head explains them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    architecture: str
    file_type: str
    published: int | None = None
    variant: str
    quantisations: tuple[str, ...]
    aliases: tuple[str, ...] = ()
    kept: dict[str, str] = {}
    note: str = ""

    @property
    def file_types(self) -> tuple[str, ...]:
        """File types the library has it in, from large to small."""
        wanted = set(FILE_TYPES) if self.quantisations == ("all",) else set(self.quantisations)
        return tuple(name for name in FILE_TYPES if name in wanted and name != "BF16")


class ArchitectureEntry(Architecture):
    """Dimensions, and the model repository they are from."""

    source: str


class Catalogue(BaseModel):
    """The whole catalogue."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    architecture: dict[str, ArchitectureEntry]
    model: dict[str, Entry]


@cache
def catalogue() -> Catalogue:
    """Return the catalogue."""
    text = files("gpurack.capacity").joinpath("catalogue.toml").read_text(encoding="utf-8")
    return Catalogue.model_validate(tomllib.loads(text))


def tag_of(file_type: str) -> str:
    """Return how a tag of Ollama's library ends for a file type: ``q4_K_M``, ``fp16``."""
    return "fp16" if file_type == "F16" else "q" + file_type[1:]


@cache
def _names() -> dict[str, tuple[str, str]]:
    """Return entry and file type by the key of every name it goes by."""
    known: dict[str, tuple[str, str]] = {}
    for name, entry in catalogue().model.items():
        for alias in (name, *entry.aliases):
            known[ModelName.parse(alias).key] = (name, entry.file_type)
    for name, entry in catalogue().model.items():
        for file_type in entry.file_types:
            known.setdefault(ModelName.parse(_tag(name, entry, file_type)).key, (name, file_type))
    return known


def _tag(name: str, entry: Entry, file_type: str) -> str:
    return f"{name.partition(':')[0]}:{entry.variant}-{tag_of(file_type)}"


def find(name: str, *, file_type: str | None = None) -> Profile:
    """Return what the catalogue knows of a model.

    Args:
        name: as Ollama reads it.
        file_type: a quantisation in place of the one the name means.

    Raises:
        UnknownModelError: the catalogue does not have it.
    """
    found = _names().get(ModelName.parse(name).key)
    if found is None:
        raise UnknownModelError(
            f"{name} is not in gpurack's catalogue, and its size and cache are not guessed: declare its file with "
            f"ollama_models.models.{name}.gguf{_nearest(name)}"
        )
    key, meant = found
    entry, chosen = catalogue().model[key], file_type or meant
    dimensions = catalogue().architecture[entry.architecture]
    order = list(FILE_TYPES)
    return Profile(
        name=name,
        architecture=dimensions,
        file_type=chosen,
        weights=weights(dimensions, chosen, kept=entry.kept),
        source=f"computed from config.json of {dimensions.source}",
        note=entry.note,
        smaller=tuple(
            _tag(key, entry, other) for other in entry.file_types if order.index(other) > order.index(chosen)
        ),
        lesser=_lesser(key),
    )


def _nearest(name: str) -> str:
    """Return what the catalogue has of the same family, or which families it has."""
    family = ModelName.parse(name).model
    known = [known for known in catalogue().model if known.partition(":")[0] == family]
    if known:
        return f"; it has {', '.join(known)}"
    return f"; it has sizes of {', '.join(dict.fromkeys(key.partition(':')[0] for key in catalogue().model))}"


@cache
def _lesser(key: str) -> tuple[str, ...]:
    """Return the family's models of fewer bytes in their usual quantisation, largest first."""
    sizes = {
        name: weights(catalogue().architecture[entry.architecture], entry.file_type, kept=entry.kept).file
        for name, entry in catalogue().model.items()
        if name.partition(":")[0] == key.partition(":")[0]
    }
    return tuple(sorted((name for name in sizes if sizes[name] < sizes[key]), key=lambda name: -sizes[name]))
