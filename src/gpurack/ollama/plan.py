"""What has to be done so that a host has the declared models: compared here, without a host."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from gpurack.ollama.names import ModelName

FOREVER = timedelta(days=365)
"""A model whose time ends later than this is taken for one that stays; Ollama writes 292 years."""


@dataclass(frozen=True)
class File:
    """A file on the control machine that a model is made from: path, name in the request, SHA-256 and bytes."""

    path: str
    name: str
    sha256: str
    size: int


@dataclass(frozen=True)
class Wanted:
    """A model as it is declared.

    Attributes:
        name: its name.
        digest: 64 digits its registry must serve; None for any.
        base: declared or undeclared model it is made from.
        files: files it is made from.
        layers: ``system``, ``template``, ``parameters`` and ``quantize`` of the request that makes it, those given.
        keep_alive: how long it stays loaded, ``forever``; None when it is not preloaded.
    """

    name: ModelName
    digest: str | None = None
    base: ModelName | None = None
    files: tuple[File, ...] = ()
    layers: Mapping[str, Any] = field(default_factory=dict)
    keep_alive: timedelta | str | None = None

    @property
    def is_made(self) -> bool:
        """Whether it is made on the host, not only pulled."""
        return bool(self.files or self.base or self.layers)

    @property
    def source(self) -> ModelName | None:
        """Name under which what it is made from is on the host; None for files."""
        return None if self.files else self.base or (self.name.base if self.layers else self.name)

    @property
    def pulled(self) -> ModelName | None:
        """Name that is pulled for it; None for files."""
        return None if self.files else self.base or self.name

    def recipe(self, source_digest: str) -> str:
        """Return what it is made of, in 64 digits.

        Args:
            source_digest: digest of the model it is made from; empty for files.
        """
        document = {
            "source": source_digest,
            "files": {file.name: file.sha256 for file in self.files},
            "layers": dict(self.layers),
        }
        return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Installed:
    """A model in Ollama's list: name, digest of 64 digits, bytes."""

    name: ModelName
    digest: str
    size: int = 0


@dataclass(frozen=True)
class Loaded:
    """A model in memory: name, digest, bytes, bytes on GPUs, and when it leaves."""

    name: ModelName
    digest: str
    size: int
    size_vram: int
    expires: datetime


@dataclass(frozen=True)
class Record:
    """What gpurack made on the host: of which recipe, with which digest as the result."""

    name: ModelName
    recipe: str
    digest: str


@dataclass(frozen=True)
class Blob:
    """A file of the store: its length, and the bytes it takes on the disk, both less for one that is on its way."""

    size: int
    on_disk: int


@dataclass
class Disk:
    """The store of models.

    Attributes:
        free: bytes that are free on its disk.
        blobs: by file name, ``sha256-...`` and partial ones.
        manifests: bytes that each blob of a model must have, by key of the model's name and by digest.
    """

    free: int = 0
    blobs: dict[str, Blob] = field(default_factory=dict)
    manifests: dict[str, dict[str, int]] = field(default_factory=dict)

    def has(self, digest: str, size: int) -> bool:
        """Whether a blob is there, of the right length."""
        blob = self.blobs.get(file_of(digest))
        return blob is not None and blob.size == size

    def partly(self, digest: str) -> int:
        """Return the bytes on disk of a blob that is on its way."""
        blob = self.blobs.get(f"{file_of(digest)}-partial")
        return blob.on_disk if blob else 0

    def lacking(self, key: str) -> list[str]:
        """Return the digests of a model's blobs that are missing, or of another length."""
        return [digest for digest, size in self.manifests.get(key, {}).items() if not self.has(digest, size)]


def file_of(digest: str) -> str:
    """Return the file name of a blob."""
    return digest.replace(":", "-")


@dataclass
class Found:
    """What is on a host.

    Attributes:
        up: whether Ollama answers; nothing is known of its models otherwise.
        models: by key of their names.
        loaded: by key of their names.
        records: by key of their names.
        disk: the store they are in.
    """

    up: bool = False
    models: dict[str, Installed] = field(default_factory=dict)
    loaded: dict[str, Loaded] = field(default_factory=dict)
    records: dict[str, Record] = field(default_factory=dict)
    disk: Disk = field(default_factory=Disk)

    def digest(self, name: ModelName) -> str | None:
        """Return the digest of a model; None where it is not installed, or lacks a part."""
        found = self.models.get(name.key)
        return found.digest if found and not self.disk.lacking(name.key) else None

    def damaged(self, names: Collection[ModelName]) -> set[str]:
        """Return the files of these models' blobs that have the wrong length: a pull would take them for whole."""
        digests = {digest for name in names for digest in self.disk.lacking(name.key)}
        return {file_of(digest) for digest in digests} & self.disk.blobs.keys()


@dataclass(frozen=True)
class Pull:
    """A model to be pulled.

    Attributes:
        name: its name.
        digest: digest it must have.
        keep_as: second name it gets, when its first is for what is made of it.
        adopt: it is there already under its first name, and only gets the second.
    """

    name: ModelName
    digest: str | None = None
    keep_as: ModelName | None = None
    adopt: bool = False


def pulls(wanted: Sequence[Wanted], found: Found) -> list[Pull]:
    """Return what has to be pulled, each model once."""
    listed = {model.name.key for model in wanted}
    needed: dict[str, Pull] = {}
    for model in wanted:
        if model.pulled is None:
            continue
        if model.base:
            if model.base.key not in listed and found.digest(model.base) is None:
                needed.setdefault(model.base.key, Pull(model.base))
        elif pull := _own_pull(model, found):
            needed[model.name.key] = pull
    return list(needed.values())


def _own_pull(model: Wanted, found: Found) -> Pull | None:
    assert model.source is not None  # noqa: S101 - not made from files
    have = found.digest(model.source)
    if have is not None and model.digest in (None, have):
        return None
    if model.source == model.name:
        return Pull(model.name, model.digest)
    # With parameters of its own: what is there under the name may be the plain model from before they were declared.
    plain = found.digest(model.name)
    record = found.records.get(model.name.key)
    ours = record is not None and record.digest == plain
    adopt = plain is not None and not ours and model.digest in (None, plain)
    return Pull(model.name, model.digest, keep_as=model.source, adopt=adopt)


def is_current(model: Wanted, found: Found) -> bool:
    """Tell whether a model that is made on the host is there, made as declared and not changed since."""
    record = found.records.get(model.name.key)
    have = found.digest(model.name)
    if record is None or have is None or record.digest != have:
        return False
    source = "" if model.source is None else found.digest(model.source)
    return source is not None and record.recipe == model.recipe(source)


def is_loaded(model: Wanted, found: Found, now: datetime | None = None) -> bool:
    """Tell whether a model to be preloaded is in memory, as it is now, for as long as asked."""
    loaded = found.loaded.get(model.name.key)
    if loaded is None or loaded.digest != found.digest(model.name):
        return False
    return model.keep_alive != "forever" or loaded.expires - (now or datetime.now(UTC)) > FOREVER


def unlisted(wanted: Sequence[Wanted], absent: Collection[ModelName], found: Found) -> list[Installed]:
    """Return models that are neither declared nor needed for one that is; those declared absent are not among them."""
    known = {name.key for name in absent}
    for model in wanted:
        known |= {name.key for name in (model.name, model.source) if name}
    return [model for model in found.models.values() if model.name.key not in known and not _own(model.name)]


def _own(name: ModelName) -> bool:
    return name.is_base or name.is_kept


def removals(
    wanted: Sequence[Wanted], absent: Collection[ModelName], found: Found, *, remove_unlisted: bool
) -> list[Installed]:
    """Return models to be removed: declared absent, no longer needed as a base, and unlisted ones where allowed."""
    needed = {name.key for model in wanted for name in (model.name, model.source) if name}
    gone = {name.key for name in absent}
    if remove_unlisted:
        gone |= {model.name.key for model in unlisted(wanted, absent, found)}
    # What was kept while another version was pulled serves nobody once the pull is done.
    gone |= {key for key, model in found.models.items() if _own(model.name) and key not in needed}
    gone -= needed
    return [model for key, model in found.models.items() if key in gone]
