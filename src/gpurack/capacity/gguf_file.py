"""Reading a model's GGUF file on the control machine: dimensions from its metadata, bytes from its tensors."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from gpurack.capacity.architecture import ARCHITECTURES, Architecture, Weights, weights
from gpurack.capacity.catalogue import Profile
from gpurack.capacity.quants import FILE_TYPES

LONGEST_ARRAY = 4_000_000
"""Elements of an array in the metadata; the largest vocabularies have about 300,000 tokens."""

GLOBAL_EVERY = {"gemma2": 2, "gemma3": 6}
"""Layers from one that sees everything to the next, which older files do not say: llama.cpp's ``set_swa_pattern``."""


class GgufError(ValueError):
    """A file is no GGUF, or not one that can be planned for; the message names the file."""


def read(path: Path, name: str, *, quantise: str | None = None) -> Profile:
    """Return what a GGUF file says of its model; a file that has not changed is not read again.

    Args:
        path: the file.
        name: of the model it becomes.
        quantise: file type of :data:`gpurack.capacity.quants.FILE_TYPES` that Ollama will make of it.

    Raises:
        GgufError: it cannot be read, is damaged, is one part of several, or has an unknown architecture.
    """
    try:
        found = path.stat()
    except OSError as error:
        raise GgufError(f"{path}: {error.strerror or error}") from error
    if not path.is_file():
        raise GgufError(f"{path}: not a file")
    return replace(_read(path, (found.st_size, found.st_mtime_ns), quantise), name=name)


@cache
def _read(path: Path, version: tuple[int, int], quantise: str | None) -> Profile:
    del version
    reader = _reader(path)
    fields = {key: _Lazy(field) for key, field in reader.fields.items()}
    try:
        architecture = _architecture(fields, reader.tensors)
    except ValidationError as error:
        first = error.errors()[0]
        raise GgufError(f"{path}: {'.'.join(map(str, first['loc'])) or 'metadata'}: {first['msg']}") from error
    except (LookupError, ValueError, TypeError, OverflowError) as error:
        raise GgufError(f"{path}: {error}") from error
    taken = weights(architecture, quantise) if quantise else _weights(reader.tensors, architecture, path)
    return Profile(
        name="",
        architecture=architecture,
        file_type=quantise or _file_type(fields),
        weights=taken,
        source=f"read from {path}",
    )


class _Lazy:
    """A field of the metadata; arrays of tokens are not unpacked, only counted."""

    def __init__(self, field: Any) -> None:
        self._field = field

    def value(self) -> Any:
        return self._field.contents()

    def __len__(self) -> int:
        return len(self._field.data)


def _reader(path: Path) -> Any:
    """Return gguf's reader of a file, made to stop at the file's end and at arrays nobody has."""
    from gguf import GGUFReader, GGUFValueType  # numpy comes with it: half a second that other commands need not wait

    class Reader(GGUFReader):
        def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> Any:
            found = super()._get(offset, dtype, count, override_order)
            if len(found) < int(count):
                raise EOFError("the file ends too early; copy or download it again")
            return found

        def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
            if raw_type == GGUFValueType.ARRAY:
                length = int(self._get(orig_offs + 4, "uint64")[0])
                if length > LONGEST_ARRAY:
                    raise ValueError(f"an array of {length} elements in the metadata; the file is damaged")
            return super()._get_field_parts(orig_offs, raw_type)

    try:
        if path.stat().st_size == 0:
            raise GgufError(f"{path}: the file is empty")
        logging.getLogger("gguf").setLevel(logging.ERROR)
        return Reader(path)
    except GgufError:
        raise
    except OSError as error:
        raise GgufError(f"{path}: {error.strerror or error}") from error
    except Exception as error:  # whatever a damaged file makes the reader and numpy raise
        reason = str(error) if isinstance(error, EOFError | ValueError) and str(error) else type(error).__name__
        raise GgufError(f"{path}: not a GGUF file that can be read: {reason}") from error


def _architecture(fields: Mapping[str, _Lazy], tensors: Any) -> Architecture:
    name = str(_need(fields, "general.architecture"))
    if name not in ARCHITECTURES:
        raise ValueError(
            f"architecture {name!r} is not known to the planner, and its cache is not guessed; known are "
            f'{", ".join(ARCHITECTURES)}. Set ollama_models.capacity to "warn" to go on without a plan'
        )
    if int(_get(fields, "split.count", 1)) > 1:
        raise ValueError("one part of a model in several files; join them with llama-gguf-split --merge")
    names = {tensor.name for tensor in tensors}
    heads, width = _most(_need(fields, f"{name}.attention.head_count")), int(_need(fields, f"{name}.embedding_length"))
    if heads < 1:
        raise ValueError(f"{name}.attention.head_count is {heads}")
    latent, rope = int(_get(fields, f"{name}.attention.kv_lora_rank", 0)), f"{name}.rope.dimension_count"
    compressed = bool(latent) and "blk.0.attn_k_b.weight" in names
    key, value = f"{name}.attention.key_length", f"{name}.attention.value_length"
    # Files with a compressed cache state what is cached under the plain names, and the heads' own lengths as _mla.
    key, value = (f"{key}_mla", f"{value}_mla") if compressed and f"{key}_mla" in fields else (key, value)
    window = int(_get(fields, f"{name}.attention.sliding_window", 0))
    return Architecture(
        architecture=name,
        block_count=int(_need(fields, f"{name}.block_count")),
        embedding_length=width,
        feed_forward_length=_most(_get(fields, f"{name}.feed_forward_length", 0)),
        head_count=heads,
        head_count_kv=heads if compressed else _most(_get(fields, f"{name}.attention.head_count_kv", heads)),
        key_length=int(_get(fields, key, width // heads)),
        value_length=int(_get(fields, value, width // heads)),
        vocabulary=_vocabulary(fields, name, tensors),
        context_length=int(_need(fields, f"{name}.context_length")),
        tied=name not in {"bert", "nomic-bert"} and "output.weight" not in names,
        # phi3 files state a window as long as the context: no layer is local.
        sliding_window=window if name in GLOBAL_EVERY else 0,
        global_every=GLOBAL_EVERY.get(name, 1),
        expert_count=int(_get(fields, f"{name}.expert_count", 0)),
        expert_used_count=int(_get(fields, f"{name}.expert_used_count", 0)),
        expert_feed_forward_length=int(_get(fields, f"{name}.expert_feed_forward_length", 0)),
        expert_shared_count=int(_get(fields, f"{name}.expert_shared_count", 0)),
        leading_dense_block_count=int(_get(fields, f"{name}.leading_dense_block_count", 0)),
        q_lora_rank=int(_get(fields, f"{name}.attention.q_lora_rank", 0)),
        kv_lora_rank=latent,
        rope_length=int(_get(fields, rope, 0)) if latent else 0,
        compressed_cache=compressed,
        positions=next((int(tensor.shape[1]) for tensor in tensors if tensor.name == "position_embd.weight"), 0),
    )


def _need(fields: Mapping[str, _Lazy], key: str) -> Any:
    if key not in fields:
        raise ValueError(f"{key} is missing from its metadata")
    return fields[key].value()


def _get(fields: Mapping[str, _Lazy], key: str, default: int) -> Any:
    return fields[key].value() if key in fields else default


def _most(value: Any) -> int:
    """Return a figure that some files give for each layer: the largest, so that none is taken for too small."""
    return max(int(item) for item in value) if isinstance(value, list) else int(value)


def _vocabulary(fields: Mapping[str, _Lazy], name: str, tensors: Any) -> int:
    if "tokenizer.ggml.tokens" in fields:
        return len(fields["tokenizer.ggml.tokens"])
    for tensor in tensors:
        if tensor.name == "token_embd.weight" and len(tensor.shape) == 2:
            return int(tensor.shape[1])
    return int(_need(fields, f"{name}.vocab_size"))


def _file_type(fields: Mapping[str, _Lazy]) -> str:
    from gguf import LlamaFileType

    try:
        name = LlamaFileType(int(_get(fields, "general.file_type", -1))).name
    except (ValueError, TypeError):
        return "unknown"
    short = name.removeprefix("MOSTLY_").removeprefix("ALL_")
    return short if short in FILE_TYPES else short.lower()


def _weights(tensors: Any, model: Architecture, path: Path) -> Weights:
    """Return the bytes by where they go; parts for images are on the GPU, as Ollama loads them."""
    layers = [0] * model.block_count
    before = behind = 0
    for tensor in tensors:
        first, _, rest = tensor.name.partition(".")
        number = rest.partition(".")[0]
        if first == "blk":
            if not number.isdecimal() or int(number) >= model.block_count:
                raise GgufError(f"{path}: tensor {tensor.name} belongs to no layer of its {model.block_count}")
            layers[int(number)] += tensor.n_bytes
        elif first in {"token_embd", "position_embd", "token_types", "token_embd_norm"}:
            before += tensor.n_bytes
        else:
            behind += tensor.n_bytes
    if empty := [number for number, taken in enumerate(layers) if not taken]:
        raise GgufError(f"{path}: layer {empty[0]} of {model.block_count} has no tensors; the file is incomplete")
    file = sum(layers) + before + behind
    return Weights(input=before, layers=tuple(layers), output=behind + (before if model.tied else 0), file=file)
