"""Ollama's store on disk: manifests by name, blobs by digest; laid out as `manifest/` of Ollama does it."""

import hashlib
import json
import os
import re
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(os.environ.get("OLLAMA_MODELS") or Path.home() / ".ollama" / "models")
BLOBS, MANIFESTS = ROOT / "blobs", ROOT / "manifests"
DIGEST = re.compile(r"sha256[:-][0-9a-f]{64}")
PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]*")
DEFAULTS = ("registry.ollama.ai", "library")
LAYER = "application/vnd.ollama.image."
CONFIG = "application/vnd.docker.container.image.v1+json"


class NotFoundError(Exception):
    """There is no model of a name."""


def parse(text):
    """Return (registry, namespace, model, tag); raise ValueError for what is no name."""
    rest, tag = text, "latest"
    if text.rfind(":") > text.rfind("/"):
        rest, _, tag = text.rpartition(":")
    parts = rest.split("/")
    name = (*DEFAULTS[: 3 - len(parts)], *parts, tag)
    if len(name) != 4 or not all(map(PART.fullmatch, name)):
        raise ValueError("invalid model name")
    return name


def shortest(name):
    """Return a name as Ollama lists it."""
    registry, namespace, model, tag = name
    front = "" if (registry, namespace) == DEFAULTS else f"{namespace}/"
    return (f"{registry}/{namespace}/" if registry != DEFAULTS[0] else front) + f"{model}:{tag}"


def blob(digest):
    """Return where a blob is; raise ValueError for what is no digest."""
    if not DIGEST.fullmatch(digest):
        raise ValueError("invalid digest format")
    BLOBS.mkdir(parents=True, exist_ok=True)
    return BLOBS / digest.replace(":", "-")


def sha256(path):
    """Return the digest of a file."""
    with path.open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


def names():
    """Return the names of all models."""
    return sorted(path.relative_to(MANIFESTS).parts for path in MANIFESTS.glob("*/*/*/*") if path.is_file())


def path_of(name):
    """Return where a model's manifest is."""
    return MANIFESTS.joinpath(*name)


def manifest(name):
    """Return a model's manifest and its digest."""
    try:
        raw = path_of(name).read_bytes()
    except OSError:
        raise NotFoundError(shortest(name)) from None
    return json.loads(raw), hashlib.sha256(raw).hexdigest()


def save(name, raw):
    """Put a manifest in place."""
    path = path_of(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(raw)


def layers_of(found):
    """Return a manifest's layers and its configuration."""
    return [*found.get("layers", []), *([found["config"]] if found.get("config", {}).get("digest") else [])]


def layer(data, media):
    """Store some bytes and return the layer."""
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    blob(digest).write_bytes(data)
    return {"mediaType": media, "digest": digest, "size": len(data)}


def adopt(temporary, media):
    """Make a file of the store's disk a blob and return the layer."""
    digest, size = sha256(temporary), temporary.stat().st_size
    temporary.replace(blob(digest))
    return {"mediaType": media, "digest": digest, "size": size}


def prune(digests):
    """Remove those blobs that no model has."""
    used = {entry["digest"] for name in names() for entry in layers_of(manifest(name)[0])}
    for digest in set(digests) - used:
        blob(digest).unlink(missing_ok=True)


def delete(name):
    """Remove a model, and its blobs where no other has them."""
    found, _ = manifest(name)
    path = path_of(name)
    path.unlink()
    for folder in list(path.parents)[:3]:
        if not any(folder.iterdir()):
            folder.rmdir()
    prune(entry["digest"] for entry in layers_of(found))


def content(found, kind):
    """Return the bytes of a manifest's layer of a kind, such as ``params``; None where it has none."""
    for entry in found["layers"]:
        if entry["mediaType"] == LAYER + kind:
            return blob(entry["digest"]).read_bytes()
    return None


def parameters(found):
    """Return a model's parameters."""
    return json.loads(content(found, "params") or b"{}")


def text(found, kind):
    """Return a model's system prompt or template."""
    return (content(found, kind) or b"").decode()


def weights(found):
    """Return the path of a model's weights."""
    return next(blob(entry["digest"]) for entry in found["layers"] if entry["mediaType"] == LAYER + "model")


def details(found):
    """Return what lists and answers say of a model."""
    config = json.loads(blob(found["config"]["digest"]).read_bytes())
    return {
        "parent_model": "",
        "format": config.get("model_format", ""),
        "family": config.get("model_family", ""),
        "families": config.get("model_families"),
        "parameter_size": config.get("model_type", ""),
        "quantization_level": config.get("file_type", ""),
    }


def listed(name):
    """Return a model's entry in /api/tags."""
    found, digest = manifest(name)
    modified = datetime.fromtimestamp(path_of(name).stat().st_mtime, UTC).isoformat()
    return {
        "name": shortest(name),
        "model": shortest(name),
        "modified_at": modified,
        "size": sum(entry["size"] for entry in layers_of(found)),
        "digest": digest,
        "details": details(found),
    }


def go(value):
    """Return a value as Go's %#v prints it."""
    return json.dumps(value, ensure_ascii=False) if not isinstance(value, float) else repr(value).removesuffix(".0")


def shown(name):
    """Return the answer of /api/show."""
    found, _ = manifest(name)
    pairs = [(key, item) for key, value in parameters(found).items() for item in _items(value)]
    system, template = text(found, "system"), text(found, "template") or "{{ .Prompt }}"
    lines = [
        '# Modelfile generated by "ollama show"',
        f"# FROM {shortest(name)}\n",
        f"FROM {weights(found)}",
        f'TEMPLATE """{template}"""',
        *([f"SYSTEM {system}"] if system else []),
        *(f"PARAMETER {key} {item}" for key, item in pairs),
    ]
    return {
        "modelfile": "\n".join(lines) + "\n",
        "parameters": "\n".join(f"{key:<30} {go(item)}" for key, item in pairs),
        "template": template,
        "system": system,
        "details": details(found),
        "model_info": {"general.architecture": details(found)["family"]},
        "capabilities": ["completion", "embedding"],
        "modified_at": listed(name)["modified_at"],
    }


def _items(value):
    return value if isinstance(value, list) else [value]
