"""Declared models as the operations take them."""

from __future__ import annotations

from pathlib import Path

from gpurack.ollama import modelfiles
from gpurack.ollama.names import ModelName
from gpurack.ollama.plan import File, Wanted
from roles.ollama_models.settings import OllamaModel, OllamaModelsSettings


def wanted(settings: OllamaModelsSettings) -> list[Wanted]:
    """Return the models the host is to have, each behind the one it is made from."""
    models = [_wanted(name, model) for name, model in settings.declared.items() if model.present]
    return sorted(models, key=lambda model: model.base is not None)


def absent(settings: OllamaModelsSettings) -> list[ModelName]:
    """Return the models that are declared absent."""
    return [name for name, model in settings.declared.items() if not model.present]


def _wanted(name: ModelName, model: OllamaModel) -> Wanted:
    layers = {
        "system": model.system,
        "template": model.template,
        "parameters": model.parameters.declared or None,
        "quantize": model.quantize,
    }
    return Wanted(
        name=name,
        digest=model.digest.removeprefix("sha256:") if model.digest else None,
        base=ModelName.parse(model.base) if model.base else None,
        files=tuple(_files(model)),
        layers={key: value for key, value in layers.items() if value is not None},
        keep_alive=(model.keep_alive or "forever") if model.preload else None,
    )


def _files(model: OllamaModel) -> list[File]:
    if model.gguf:
        # A checksum that is declared is not computed here: the host does, on what has arrived.
        return [_file(model.gguf, model.sha256)]
    return [_file(path, None) for path in modelfiles.files_of(model.safetensors)] if model.safetensors else []


def _file(path: Path, sha256: str | None) -> File:
    return File(str(path), path.name, sha256 or modelfiles.sha256(path), path.stat().st_size)
