"""A llama model of a few hundred kilobytes with random weights, written as a GGUF file.

A real engine loads it and really generates, streams and embeds with it; what it says is noise. The same seed gives the
same file. Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import random
import struct
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path

ALIGNMENT = 32
F32 = 0
_U32, _I32, _FLOAT, _STRING, _ARRAY = 4, 5, 6, 8, 9
_NORMAL, _UNKNOWN, _CONTROL, _BYTE = 1, 2, 3, 6

EMBEDDING, HEADS, LAYERS, CONTEXT = 64, 4, 2, 2048
WORDS = ("▁", *(f"▁{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"), *"abcdefghijklmnopqrstuvwxyz.,?!")

Value = str | int | float | Sequence[str] | Sequence[int] | Sequence[float]


def write(path: Path, *, seed: int = 1, feed_forward: int = 128, architecture: str = "llama") -> Path:
    """Write the model.

    Args:
        path: of the file.
        seed: of its weights.
        feed_forward: width of a layer; each adds 1.5 KB to the file.
        architecture: what the file says it is; anything but ``llama`` is a lie.
    """
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *WORDS]
    kinds = [_UNKNOWN, _CONTROL, _CONTROL, *[_BYTE] * 256, *[_NORMAL] * len(WORDS)]
    about: dict[str, Value] = {
        "general.architecture": architecture,
        "general.name": "gpurack test model",
        "general.file_type": 0,
        "llama.block_count": LAYERS,
        "llama.context_length": CONTEXT,
        "llama.embedding_length": EMBEDDING,
        "llama.feed_forward_length": feed_forward,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": HEADS,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.dimension_count": EMBEDDING // HEADS,
        "llama.vocab_size": len(tokens),
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0] * (3 + 256) + [-float(rank) for rank in range(len(WORDS))],
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }
    path.write_bytes(encode(about, _tensors(len(tokens), feed_forward), seed))
    return path


def _tensors(words: int, feed_forward: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes by name, fastest dimension first."""
    square, up, down = (EMBEDDING, EMBEDDING), (EMBEDDING, feed_forward), (feed_forward, EMBEDDING)
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (EMBEDDING, words)}
    for layer in range(LAYERS):
        block = {
            "attn_norm": (EMBEDDING,),
            "attn_q": square,
            "attn_k": square,
            "attn_v": square,
            "attn_output": square,
            "ffn_norm": (EMBEDDING,),
            "ffn_gate": up,
            "ffn_up": up,
            "ffn_down": down,
        }
        shapes |= {f"blk.{layer}.{name}.weight": shape for name, shape in block.items()}
    return shapes | {"output_norm.weight": (EMBEDDING,), "output.weight": (EMBEDDING, words)}


def encode(about: Mapping[str, Value], tensors: Mapping[str, tuple[int, ...]], seed: int) -> bytes:
    """Return a GGUF file of F32 tensors with random content."""
    head = bytearray(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(about)))
    for key, value in about.items():
        head += _text(key) + _value(value)
    offset, sizes = 0, {}
    for name, shape in tensors.items():
        count = 1
        for dimension in shape:
            count *= dimension
        head += _text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, F32, offset)
        sizes[name] = count
        offset += -(-count * 4 // ALIGNMENT) * ALIGNMENT
    head += bytes(-len(head) % ALIGNMENT)
    numbers = random.Random(seed)  # noqa: S311 - weights, not keys
    noise = array("f", (numbers.gauss(0, 0.08) for _ in range(65536)))
    for name, count in sizes.items():
        if "norm" in name:
            data = array("f", [1.0]) * count
        else:
            start = numbers.randrange(len(noise))
            turned = noise[start:] + noise[:start]
            data = (turned * (count // len(turned) + 1))[:count]
        head += data.tobytes() + bytes(-count * 4 % ALIGNMENT)
    return bytes(head)


def _text(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _value(value: Value) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _text(value)
    if isinstance(value, float):
        return struct.pack("<If", _FLOAT, value)
    if isinstance(value, int):
        return struct.pack("<II", _U32, value)
    if isinstance(value[0], str):
        return struct.pack("<IIQ", _ARRAY, _STRING, len(value)) + b"".join(_text(str(item)) for item in value)
    kind, letter = (_FLOAT, "f") if isinstance(value[0], float) else (_I32, "i")
    return struct.pack(f"<IIQ{len(value)}{letter}", _ARRAY, kind, len(value), *value)
