"""Reading of container image archives (``docker save`` and OCI layout) on the control machine, without an engine."""

from __future__ import annotations

import hashlib
import json
import tarfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

# The documents that describe the images are a few kilobytes; anything bigger is no archive of ours.
MAX_DOCUMENT_BYTES = 4 * 1024 * 1024


class ArchiveError(ValueError):
    """The file is not a usable image archive; the message says why, and what to do."""


@dataclass(frozen=True)
class ImageArchive:
    """What an archive holds.

    Attributes:
        path: the file.
        size: its size in bytes.
        images: for every tag in the archive (``ollama/ollama:0.32.15``) the IDs that an engine may give the image:
            the digest of its configuration and, with the containerd image store, that of its manifest.
    """

    path: Path
    size: int
    images: dict[str, frozenset[str]]

    def ids(self, reference: str) -> frozenset[str]:
        """Return the possible IDs of an image.

        Raises:
            ArchiveError: the archive has no such tag; the message names those it has.
        """
        try:
            return self.images[reference]
        except KeyError:
            held = ", ".join(sorted(self.images)) or "no tagged image"
            raise ArchiveError(f"{self.path} holds {held}, not {reference}") from None


def read(path: Path) -> ImageArchive:
    """Return what an image archive holds.

    Raises:
        ArchiveError: no such file, not a tar archive, or no images in it.
    """
    try:
        stat = path.stat()
    except OSError as error:
        raise ArchiveError(f"{path}: {error.strerror} (a relative path starts at the repository root)") from None
    if not path.is_file():
        raise ArchiveError(f"{path} is not a file")
    return _read(path.absolute(), stat.st_mtime_ns, stat.st_size)


def sha256(path: Path) -> str:
    """Return a file's SHA-256 in hexadecimal; read once for each state of the file (about 2 s a GB)."""
    stat = path.stat()
    return _sha256(path.absolute(), stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=64)
def _sha256(path: Path, _mtime_ns: int, _size: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@lru_cache(maxsize=64)
def _read(path: Path, _mtime_ns: int, size: int) -> ImageArchive:
    wanted = {"manifest.json", "index.json"}
    found: dict[str, Any] = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                name = member.name.removeprefix("./")
                if name in wanted and member.isfile():
                    found[name] = _document(archive, member)
                    if found.keys() == wanted:
                        break
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ArchiveError(f"{path} is not a tar archive ({error}); write it with `docker save -o`") from None
    except ValueError as error:
        raise ArchiveError(f"{path}: {error}") from None
    if "manifest.json" not in found:
        raise ArchiveError(f"{path} has no manifest.json: not an archive of `docker save`")
    try:
        return ImageArchive(path, size, _images(found["manifest.json"], found.get("index.json")))
    except (KeyError, TypeError, AttributeError):
        raise ArchiveError(f"{path}: its manifest.json is not one of `docker save`") from None


def _document(archive: tarfile.TarFile, member: tarfile.TarInfo) -> Any:
    if member.size > MAX_DOCUMENT_BYTES:
        raise ValueError(f"{member.name} is larger than {MAX_DOCUMENT_BYTES} bytes")
    file = archive.extractfile(member)
    assert file is not None  # noqa: S101 - a regular file has a body
    return json.loads(file.read())


def _images(manifest: list[dict[str, Any]], index: dict[str, Any] | None) -> dict[str, frozenset[str]]:
    # index.json names images the long way (docker.io/ollama/ollama:1), manifest.json as people write them.
    by_tag: dict[str, set[str]] = {}
    for image in manifest:
        digest = image["Config"].removeprefix("blobs/sha256/").removesuffix(".json")
        for tag in image.get("RepoTags") or []:  # skopeo writes them the long way too
            by_tag.setdefault(_familiar(tag), set()).add(f"sha256:{digest}")
    for entry in (index or {}).get("manifests", []):
        name = entry.get("annotations", {}).get("io.containerd.image.name", "")
        for tag in by_tag:
            if _familiar(name) == tag:
                by_tag[tag].add(entry["digest"])
    return {tag: frozenset(ids) for tag, ids in by_tag.items()}


def _familiar(name: str) -> str:
    """Return an image's name as the engine shows it: Docker Hub goes without saying."""
    return name.removeprefix("docker.io/").removeprefix("library/")
