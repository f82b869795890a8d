"""Facts about Ollama's models: through its API, and about the store they are in."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from pyinfra.api import FactBase

from gpurack.ollama.api import CURL
from gpurack.ollama.names import ModelName
from gpurack.ollama.plan import Blob, Found, Installed, Loaded, Record

RECORDS = "/var/lib/gpurack/models"
"""Where it is written down what a model that was made on the host was made of."""

ACCEPT = "application/vnd.docker.distribution.manifest.v2+json"


class Models(FactBase[Found]):
    """Return the models Ollama has and those in memory, the store they are in, and the records of those made here."""

    default = Found

    def command(self, address: str, directory: str) -> str:
        """Return the command.

        Args:
            address: where the API is on the host, ``127.0.0.1:11434``.
            directory: ``models_dir`` of the server, which need not be there yet.
        """
        url, store = f"http://{shlex.quote(address)}/api", shlex.quote(f"{directory}/models")
        asked = "; ".join(
            f"printf '%s ' {kind}; {CURL} --max-time 30 --fail {url}/{kind} 2>/dev/null; echo"
            for kind in ("tags", "ps")
        )
        parts = (
            f"if command -v curl >/dev/null; then {asked}; fi",
            f'd={store}; while ! test -d "$d"; do d=$(dirname "$d"); done',
            'printf "free "; df --block-size=1 --output=avail "$d" | tail -n 1',
            f"if test -d {store}/blobs; then find {store}/blobs -maxdepth 1 -type f -printf 'blob %f %s %b\\n'; fi",
            f"if cd {store}/manifests 2>/dev/null; then find * -mindepth 3 -maxdepth 3 -type f "
            """-exec sh -c 'for f; do printf "manifest %s " "$f"; tr -d "\\n" <"$f"; echo; done' sh {} +; fi""",
            f'for file in {RECORDS}/*.json; do if test -f "$file"; then printf "record "; cat "$file"; fi; done',
        )
        return "; ".join((*parts, "true"))

    def process(self, output: list[str]) -> Found:
        """Parse the lines."""
        found = Found()
        for line in output:
            kind, _, text = line.partition(" ")
            if kind == "free":
                found.disk.free = int(text)
            elif kind == "blob":
                name, size, blocks = text.split()
                found.disk.blobs[name] = Blob(int(size), int(blocks) * 512)  # find counts blocks of 512 bytes
            elif kind == "manifest":
                path, _, text = text.partition(" ")
                _note_manifest(found, path, text)
            elif (document := _json(text)) is None:
                continue
            elif kind == "record":
                named = ModelName.parse(document["name"])
                found.records[named.key] = Record(named, document["recipe"], document["digest"])
            elif kind == "tags":
                found.up = True
                found.models = {model.name.key: model for model in map(_installed, document.get("models") or [])}
            elif kind == "ps":
                found.loaded = {model.name.key: model for model in map(_loaded, document.get("models") or [])}
        return found


def _note_manifest(found: Found, path: str, text: str) -> None:
    try:
        name = ModelName(*path.split("/"))
    except (TypeError, ValueError):  # a file of somebody else's
        return
    document = _json(text)
    # A manifest that cannot be read names no blob, so that its model lacks something.
    found.disk.manifests[name.key] = _blobs(document) if document else {"": -1}


def _blobs(document: Mapping[str, Any]) -> dict[str, int]:
    entries = [*(document.get("layers") or []), *([document["config"]] if document.get("config") else [])]
    return {entry["digest"]: int(entry["size"]) for entry in entries if entry.get("digest")}


def _installed(model: Mapping[str, Any]) -> Installed:
    return Installed(ModelName.parse(model["name"]), model["digest"], model["size"])


def _loaded(model: Mapping[str, Any]) -> Loaded:
    name, expires = ModelName.parse(model["name"]), moment(model["expires_at"])
    return Loaded(name, model["digest"], model["size"], model.get("size_vram", 0), expires)


def _json(text: str) -> dict[str, Any] | None:
    try:
        document = json.loads(text)
    except ValueError:
        return None
    return document if isinstance(document, dict) else None


def moment(text: str) -> datetime:
    """Return a time as Go writes it: nanoseconds, any offset, and a last year that Python counts no further than."""
    match = re.fullmatch(r"(\d{4})(-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.\d+)?(Z|[+-]\d\d:\d\d)", text)
    if not match:
        raise ValueError(f"not a time: {text!r}")
    if match[1] == "9999":
        return datetime.max.replace(tzinfo=UTC)
    return datetime.fromisoformat(f"{match[1]}{match[2]}{match[3].replace('Z', '+00:00')}")


@dataclass(frozen=True)
class Served:
    """What a registry says of a model.

    Attributes:
        status: HTTP status; 0 when it cannot be reached from the host.
        digest: of the manifest, 64 digits.
        blobs: bytes of each blob by digest.
    """

    status: int
    digest: str = ""
    blobs: Mapping[str, int] = field(default_factory=dict)


class RegistryManifests(FactBase[dict[str, Served]]):
    """Return what registries say of models, by key of the name; asked from the host, as Ollama would ask."""

    default = dict

    def command(self, names: Sequence[ModelName], insecure: Sequence[str]) -> str:
        """Return the command.

        Args:
            names: the models.
            insecure: registries that speak plain HTTP.
        """
        asked = []
        for name in names:
            scheme = "http" if name.registry in insecure else "https"
            url = shlex.quote(f"{scheme}://{name.registry}/v2/{name.namespace}/{name.model}/manifests/{name.tag}")
            asked.append(
                f"printf '%s ' {shlex.quote(name.key)}; curl --silent --location --max-time 20 --output \"$t\" "
                f"--header 'Accept: {ACCEPT}' --write-out '%{{http_code}} ' {url}; "
                'base64 --wrap=0 "$t"; echo; : >"$t"'
            )
        return f'command -v curl >/dev/null || exit 0; t=$(mktemp); {"; ".join(asked)}; rm -f "$t"'

    def process(self, output: list[str]) -> dict[str, Served]:
        """Parse the lines."""
        found = {}
        for line in output:
            key, status, *encoded = line.split()
            found[key] = _served(int(status), base64.b64decode(encoded[0]) if encoded else b"")
        return found


def _served(status: int, raw: bytes) -> Served:
    document = _json(raw.decode(errors="replace"))
    if status != 200 or document is None or "layers" not in document:
        return Served(status if status != 200 else 0)
    return Served(200, hashlib.sha256(raw).hexdigest(), _blobs(document))


class BlobDigests(FactBase[dict[str, str]]):
    """Return the SHA-256 of every whole blob by its file's name, read from the disk now: about 2 s a GB."""

    default = dict

    def command(self, directory: str) -> str:
        """Return the command.

        Args:
            directory: ``models_dir`` of the server.
        """
        blobs = shlex.quote(f"{directory}/models/blobs")
        pattern = f"sha256-{'?' * 64}"
        return (
            f'if cd {blobs} 2>/dev/null; then for f in {pattern}; do test ! -f "$f" || sha256sum "$f"; done; fi; true'
        )

    def process(self, output: list[str]) -> dict[str, str]:
        """Parse the lines of sha256sum."""
        return {line.split()[1]: line.split()[0] for line in output if len(line.split()) == 2}
