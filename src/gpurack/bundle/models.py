"""Models of a bundle, as Ollama keeps them: ``models/manifests/<registry>/<namespace>/<model>/<tag>``, and blobs."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path

from gpurack.bundle import manifest
from gpurack.bundle.manifest import BundleError
from gpurack.ollama.names import ModelName
from gpurack.ollama.pulled import PulledModel
from gpurack.registry import Registry, RegistryError

FOLDER = "models"
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
TRIES = 5
"""How often in one run a download that was cut goes on; the next run goes on too."""


def fetch(model: PulledModel, folder: Path, partial: Path) -> int:
    """Bring a model into a store from its registry, going on where a download was cut; return its bytes.

    Args:
        model: which.
        folder: the store, with ``manifests`` and ``blobs``.
        partial: folder of unfinished downloads, on the same disk.

    Raises:
        BundleError: the registry cannot be reached or has another model than the pinned one; or what it served is not
            what its manifest says.
    """
    name = model.name
    registry = Registry(name.registry, plain=model.plain)
    repository = f"{name.namespace}/{name.model}"
    try:
        data = registry.manifest(repository, name.tag)
        found = f"sha256:{hashlib.sha256(data).hexdigest()}"
        if model.digest and model.digest != found:
            raise BundleError(f"model {name}: its registry serves {found}, and digest pins {model.digest}")
        blobs = blobs_of(data, f"model {name}")
        for digest, size in blobs.items():
            target = folder / "blobs" / digest.replace(":", "-")
            if not (target.is_file() and target.stat().st_size == size):
                _blob(registry, repository, digest, size, partial / digest.replace(":", "-"), target)
    except RegistryError as error:
        raise BundleError(f"model {name}: {error}") from None
    path = folder / "manifests" / name.path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return sum(blobs.values())


def _blob(registry: Registry, repository: str, digest: str, size: int, partial: Path, target: Path) -> None:
    partial.parent.mkdir(parents=True, exist_ok=True)
    for attempt in range(TRIES):
        try:
            registry.blob(repository, digest, partial, size)
            break
        except RegistryError:
            if attempt == TRIES - 1:
                raise
    if f"sha256:{manifest.sha256(partial)}" != digest:
        partial.unlink()
        raise BundleError(f"{registry.name}: {repository}: {digest} has another content than its name says; run again")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial.rename(target)


def blobs_of(data: bytes, where: str) -> dict[str, int]:
    """Return the bytes of each blob of a model by digest, read from its manifest.

    Raises:
        BundleError: it is no manifest of a model.
    """
    try:
        document = json.loads(data)
        found = {entry["digest"]: int(entry["size"]) for entry in [document["config"], *document["layers"]]}
        if not all(DIGEST.fullmatch(digest) for digest in found):
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError):
        raise BundleError(f"{where}: not a model's manifest") from None
    return found


def drop_others(folder: Path, models: Sequence[PulledModel]) -> None:
    """Remove models from a store that are not wanted, and blobs that no model has."""
    wanted = {folder / "manifests" / model.name.path for model in models}
    blobs: set[str] = set()
    for file in folder.glob("manifests/**/*"):
        if file.is_file() and file not in wanted:
            file.unlink()
        elif file.is_file():
            blobs |= {digest.replace(":", "-") for digest in blobs_of(file.read_bytes(), str(file))}
    for file in folder.glob("blobs/*"):
        if file.name not in blobs:
            file.unlink()


def in_bundle(bundle: Path, name: ModelName) -> tuple[str, dict[str, int]]:
    """Return the path of a model's manifest in a bundle, and the bytes of its blobs by digest.

    Raises:
        BundleError: the bundle has no such model, or its manifest was changed.
    """
    listed = manifest.read(bundle)
    path = f"{FOLDER}/manifests/{name.path}"
    if path not in listed.files:
        raise BundleError(f"bundle {bundle} has no model {name}: make it anew with this inventory")
    data = (bundle / path).read_bytes()
    if hashlib.sha256(data).hexdigest() != listed.files[path].sha256:
        raise BundleError(f"{bundle / path} was tampered with, or is damaged")
    return path, blobs_of(data, path)
