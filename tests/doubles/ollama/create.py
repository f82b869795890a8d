"""Making models as `server/create.go` of Ollama does it: from another model or a GGUF file, with layers on top."""

import json
import os
import struct
import subprocess
import tempfile
from pathlib import Path

import download
import store

QUANTIZE = "/usr/bin/llama-quantize"
REPLACED = {"template": "template", "system": "system", "params": "parameters"}


class CreateError(Exception):
    """A model was not made; the message is Ollama's."""


def create(request, emit):
    """Make a model, telling each step to ``emit``."""
    name = store.parse(request.get("model") or request.get("name") or "")
    layers, config, old = [], {}, {}
    if request.get("from"):
        layers, config, old = _from_model(store.parse(request["from"]), emit)
    elif request.get("files"):
        layers, config = _from_files(request["files"], request.get("quantize") or "", emit)
    else:
        raise CreateError("neither 'from' or 'files' was specified")
    for kind in ("template", "system"):
        if request.get(kind):
            layers = [entry for entry in layers if entry["mediaType"] != store.LAYER + kind]
            layers.append(store.layer(request[kind].encode(), store.LAYER + kind))
    if merged := {**old, **(request.get("parameters") or {})}:
        layers = [entry for entry in layers if entry["mediaType"] != store.LAYER + "params"]
        layers.append(store.layer(_encode(merged), store.LAYER + "params"))
    config |= {"os": "linux", "architecture": "amd64"}
    config["rootfs"] = {"type": "layers", "diff_ids": [entry["digest"] for entry in layers]}
    emit({"status": "writing manifest"})
    before = []
    if store.path_of(name).exists():
        before = [entry["digest"] for entry in store.layers_of(store.manifest(name)[0])]
    document = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
        "config": store.layer(_encode(config), store.CONFIG),
        "layers": layers,
    }
    store.save(name, _encode(document))
    store.prune(before)
    emit({"status": "success"})


def _encode(document):
    return json.dumps(document, separators=(",", ":")).encode() + b"\n"


def _from_model(name, emit):
    if not store.path_of(name).exists():
        download.pull(name, False, emit)
    found, _ = store.manifest(name)
    config = json.loads(store.blob(found["config"]["digest"]).read_bytes())
    emit({"status": "using existing layer"})
    return list(found["layers"]), config, store.parameters(found)


def _from_files(files, quantize, emit):
    if any(Path(name).suffix == ".safetensors" for name in files):
        raise CreateError("the test double does not convert safetensors")
    layers, config = [], {}
    for digest in files.values():
        emit({"status": "parsing GGUF"})
        path = store.blob(digest)
        if not path.exists():
            raise CreateError(f"open {path}: no such file or directory")
        architecture = _architecture(path)
        if architecture is None:
            raise CreateError("supplied file was not in GGUF format")
        emit({"status": "validating GGUF model"})
        layers.append(_rewritten(path, quantize))
        config = {
            "model_format": "gguf",
            "model_family": architecture,
            "model_families": [architecture],
            "model_type": f"{path.stat().st_size / 4e6:.2f}M",
            "file_type": quantize.upper() or "F32",
        }
    return layers, config


def _architecture(path):
    """Return what a GGUF file says it is, in its first field; None for another file."""
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            return None
        file.seek(24)
        key = file.read(struct.unpack("<Q", file.read(8))[0])
        if key != b"general.architecture":
            return "unknown"
        file.seek(4, os.SEEK_CUR)
        return file.read(struct.unpack("<Q", file.read(8))[0]).decode()


def _rewritten(path, quantize):
    """Return the layer of a file that the engine has read and written again: it has another digest."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix="COPY") as folder:
        out = Path(folder) / "model.gguf"
        command = [QUANTIZE, str(path), str(out), quantize.upper() or "COPY"]
        made = subprocess.run(command, capture_output=True, text=True)
        if made.returncode:
            words = [line for line in made.stderr.splitlines() if "error" in line.lower() or "failed" in line.lower()]
            raise CreateError(f"failed to validate GGUF with llama-quantize: {'; '.join(words[-2:])}")
        return store.adopt(out, store.LAYER + "model")
