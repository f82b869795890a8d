"""A bundle's manifest: what is in it, with checksums, signed; and the comparison of a bundle with it."""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

MANIFEST = "MANIFEST.json"
SIGNATURE = "MANIFEST.json.sig"
KEY = "key.gpg"
UNLISTED = frozenset({MANIFEST, SIGNATURE, KEY})
WORK = ".work"
"""Folder of a bundle in the making; the manifest is written last, so that nothing unfinished has one."""

MAX_MANIFEST_BYTES = 64 * 1024 * 1024


class BundleError(Exception):
    """A bundle cannot be made, read or trusted; the message says why, and what to do."""


def _inside(value: str) -> str:
    path = PurePosixPath(value)
    if path.is_absolute() or ".." in path.parts or str(path) != value or value in ("", "."):
        raise ValueError("a path inside the bundle, without ..")
    if not re.fullmatch(r"[A-Za-z0-9._+~:@/-]+", value) or value.partition("/")[0] in {*UNLISTED, WORK}:
        raise ValueError("not a file's name in a bundle")
    return value


InsidePath = Annotated[str, AfterValidator(_inside)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Entry(BaseModel):
    """A file: its size in bytes, and its SHA-256 in hexadecimal."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    size: int = Field(ge=0)
    sha256: Sha256


class BundledImage(BaseModel):
    """A container image: the reference it is tagged with in its archive, and the archive's path in the bundle."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    reference: str
    path: InsidePath


class Manifest(BaseModel):
    """What is in a bundle.

    Attributes:
        format: version of this document.
        created: when, ISO 8601 in UTC.
        gpurack: version that made it.
        inventory: what it was made for.
        releases: codenames of the releases it has packages for.
        images: container images by their name in ``images.toml``.
        models: names of the models that come from registries, tags included.
        files: every file of the bundle but the manifest, its signature and the key, by path.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    created: str
    gpurack: str
    inventory: str
    releases: tuple[Annotated[str, Field(pattern=r"^[a-z]+$")], ...]
    images: dict[str, BundledImage]
    models: tuple[str, ...] = ()
    files: dict[InsidePath, Entry]

    @model_validator(mode="after")
    def _images_are_files(self) -> Manifest:
        for name, image in self.images.items():
            if image.path not in self.files:
                raise ValueError(f"image {name}: {image.path} is not among the files")
        return self

    def text(self) -> str:
        """Return the document."""
        return json.dumps(self.model_dump(mode="json"), indent=1, sort_keys=True) + "\n"


def parse(data: bytes, where: str) -> Manifest:
    """Return the manifest in a document.

    Raises:
        BundleError: it is none; the message names the place.
    """
    try:
        return Manifest.model_validate_json(data, strict=False)
    except ValidationError as errors:
        first = errors.errors(include_url=False)[0]
        at = ".".join(map(str, first["loc"]))
        raise BundleError(f"{where} is not a bundle's manifest: {f'{at}: ' if at else ''}{first['msg']}") from None


def read(bundle: Path) -> Manifest:
    """Return the manifest of a bundle in a directory; its signature is not looked at.

    Raises:
        BundleError: there is none, or it is wrong.
    """
    path = bundle / MANIFEST
    try:
        stat = path.stat()
        if stat.st_size > MAX_MANIFEST_BYTES:
            raise BundleError(f"{path} is too large for a manifest")
        return _read(path.absolute(), str(path), stat.st_mtime_ns, stat.st_size)
    except OSError as error:
        if bundle.is_file():
            raise BundleError(f"{bundle} is a file: unpack it first, with tar -xf") from None
        hint = (
            "its creation was cut off: run `gpurack bundle create` again" if (bundle / WORK).is_dir() else "no bundle"
        )
        raise BundleError(f"{path}: {error.strerror}; {hint}") from None


@lru_cache(maxsize=8)
def _read(path: Path, name: str, _mtime_ns: int, _size: int) -> Manifest:
    return parse(path.read_bytes(), name)


@dataclass
class Comparison:
    """How a bundle's files differ from its manifest: paths of changed, missing and extra files."""

    tampered: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing differs."""
        return not (self.tampered or self.missing or self.extra)

    def lines(self) -> Iterator[str]:
        """Yield one line for each file that differs."""
        for what, paths in (
            ("tampered with or damaged", self.tampered),
            ("missing", self.missing),
            ("not in the manifest", self.extra),
        ):
            for path in sorted(paths):
                yield f"{path}: {what}"


def compare(bundle: Path, manifest: Manifest, *, content: bool = True) -> Comparison:
    """Compare the files of a bundle with its manifest.

    Args:
        bundle: the directory.
        manifest: its manifest.
        content: read every file (about 2 s a GB); otherwise sizes alone are compared.
    """
    found = Comparison()
    for path, entry in manifest.files.items():
        file = bundle / path
        if file.is_symlink() or not file.is_file():
            found.missing.append(path)
        elif file.stat().st_size != entry.size or (content and sha256(file) != entry.sha256):
            found.tampered.append(path)
    known = {*manifest.files, *UNLISTED}
    for file in sorted(bundle.rglob("*")):
        path = file.relative_to(bundle).as_posix()
        if path not in known and (file.is_symlink() or not file.is_dir()):
            found.extra.append(path)
    return found


def compare_tar(archive: Path, manifest: Manifest) -> Comparison:
    """Compare the files in a bundle's tar file with its manifest, reading it once from end to end.

    Raises:
        BundleError: it is no tar file, or was cut off.
    """
    found = Comparison()
    missing = set(manifest.files)
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                entry = manifest.files.get(member.name)
                if member.name in UNLISTED:
                    continue
                if entry is None or not member.isfile() or member.name not in missing:
                    found.extra.append(member.name)
                    continue
                missing.discard(member.name)
                body = tar.extractfile(member)
                assert body is not None  # noqa: S101 - a regular file has a body
                digest = hashlib.sha256()
                while piece := body.read(1024 * 1024):
                    digest.update(piece)
                if member.size != entry.size or digest.hexdigest() != entry.sha256:
                    found.tampered.append(member.name)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise BundleError(f"{archive} cannot be read to its end: {error}") from None
    found.missing = sorted(missing)
    return found


def unpack_head(archive: Path, folder: Path) -> None:
    """Put manifest, signature and key of a bundle's tar file, which come first, into a folder.

    Raises:
        BundleError: they are not there.
    """
    try:
        with tarfile.open(archive) as tar:
            for _ in UNLISTED:
                member = tar.next()
                if member is None or member.name not in UNLISTED or not member.isfile():
                    raise BundleError(f"{archive} does not begin with a bundle's manifest, signature and key")
                body = tar.extractfile(member)
                assert body is not None  # noqa: S101 - a regular file has a body
                (folder / member.name).write_bytes(body.read(MAX_MANIFEST_BYTES))
    except (tarfile.TarError, EOFError, OSError) as error:
        raise BundleError(f"{archive} is not a bundle: {error}") from None


def entries(bundle: Path) -> dict[str, Entry]:
    """Return the entries of all files of a bundle in the making, its work folder left out."""
    return {
        path.relative_to(bundle).as_posix(): Entry(size=path.stat().st_size, sha256=sha256(path))
        for path in sorted(bundle.rglob("*"))
        if path.is_file() and path.relative_to(bundle).parts[0] not in {*UNLISTED, WORK}
    }


def sha256(path: Path) -> str:
    """Return a file's SHA-256 in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
