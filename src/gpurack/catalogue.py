"""The catalogue of container images, ``images.toml``: the one place that says which images gpurack runs."""

from __future__ import annotations

import re
import tomllib
from functools import lru_cache
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

FILE = Path("images.toml")
"""Relative to the repository's root, where everything is run."""

MOVING_TAGS = frozenset({"latest", "main", "master", "edge", "nightly", "stable", "dev", "rocm", "render", "lts"})


def _pinned(tag: str) -> str:
    if tag in MOVING_TAGS:
        raise ValueError(f"{tag!r} is a moving tag; name a release, or today's image is not tomorrow's")
    return tag


Tag = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$"), AfterValidator(_pinned)]
Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
RegistryName = Annotated[str, Field(pattern=r"^([a-z0-9-]+\.)*[a-z0-9-]+(:\d{1,5})?$")]
Repository = Annotated[str, Field(pattern=r"^[a-z0-9]+((\.|_|__|-+|/)[a-z0-9]+)*$")]

NAME = re.compile(r"^[a-z][a-z0-9-]*$")


class CatalogueError(ValueError):
    """``images.toml`` cannot be used; the message names file, key and cause."""


class Image(BaseModel):
    """An image of the catalogue.

    Attributes:
        registry: where it is published: ``docker.io``, ``quay.io``.
        repository: its path there, without registry and tag.
        tag: the pinned release.
        digest: of the manifest (or list of manifests) the registry must serve for the tag; None if not known.
        source: where its source is.
        licence: SPDX name of its licence.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    registry: RegistryName
    repository: Repository
    tag: Tag
    digest: Digest | None = None
    source: str = Field(pattern=r"^https://\S+$")
    licence: str = Field(min_length=1)

    @property
    def name(self) -> str:
        """Name as Docker writes it, without tag: Docker Hub goes without saying."""
        return self.repository if self.registry == "docker.io" else f"{self.registry}/{self.repository}"


def catalogue(file: Path = FILE) -> dict[str, Image]:
    """Return the images of the catalogue by name.

    Raises:
        CatalogueError: no such file, or something wrong in it.
    """
    try:
        stat = file.stat()
    except OSError as error:
        raise CatalogueError(f"{file}: {error.strerror}; run from the repository's root") from None
    return _read(file.absolute(), file, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=8)
def _read(path: Path, file: Path, _mtime_ns: int, _size: int) -> dict[str, Image]:
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CatalogueError(f"{file}: {error}") from None
    images = {}
    for name, entry in document.items():
        if not NAME.match(name):
            raise CatalogueError(f"{file}: {name}: a name has small letters, digits and hyphens")
        try:
            images[name] = Image.model_validate(entry)
        except ValidationError as errors:
            first = errors.errors(include_url=False)[0]
            key = ".".join(str(part) for part in (name, *first["loc"]))
            raise CatalogueError(f"{file}: {key}: {first['msg'].removeprefix('Value error, ')}") from None
    return images


def with_digest(text: str, name: str, digest: str) -> str:
    """Return the text of a catalogue with an image's digest set, everything else left as it is.

    Args:
        text: of the catalogue.
        name: of the image.
        digest: new digest, ``sha256:...``.

    Raises:
        CatalogueError: the text has no table of that name, or no tag in it.
    """
    lines = text.splitlines(keepends=True)
    try:
        start = next(n for n, line in enumerate(lines) if line.split("#")[0].strip() == f"[{name}]") + 1
    except StopIteration:
        raise CatalogueError(f"{FILE}: no table [{name}]") from None
    end = next((n for n in range(start, len(lines)) if lines[n].lstrip().startswith("[")), len(lines))
    kept = [line for line in lines[start:end] if not re.match(r"\s*digest\s*=", line)]
    after = next((n for n, line in enumerate(kept) if re.match(r"\s*tag\s*=", line)), None)
    if after is None:
        raise CatalogueError(f"{FILE}: {name}: no tag")
    if not kept[after].endswith("\n"):
        kept[after] += "\n"
    kept.insert(after + 1, f'digest = "{digest}"\n')
    return "".join([*lines[:start], *kept, *lines[end:]])
