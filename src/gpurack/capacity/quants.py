"""GGML's tensor types, and which of them a file of a quantisation is made of.

Sizes of blocks: ``TypeSize`` and ``BlockSize`` in Ollama's ``fs/ggml/ggml.go``; a test compares them with the package
gguf. Mixtures: ``llama_tensor_get_type_impl`` in llama.cpp's ``src/llama-quant.cpp``, for files without an importance
matrix, as Ollama's library has them.
"""

from __future__ import annotations

from dataclasses import dataclass

BLOCKS: dict[str, tuple[int, int]] = {
    "F32": (1, 4),
    "F16": (1, 2),
    "BF16": (1, 2),
    "Q4_0": (32, 18),
    "Q4_1": (32, 20),
    "Q5_0": (32, 22),
    "Q5_1": (32, 24),
    "Q8_0": (32, 34),
    "Q2_K": (256, 84),
    "Q3_K": (256, 110),
    "Q4_K": (256, 144),
    "Q5_K": (256, 176),
    "Q6_K": (256, 210),
}
"""Tensor type -> (elements, bytes) of a block."""

FILE_TYPES: dict[str, str] = {
    "F16": "F16",
    "BF16": "BF16",
    "Q8_0": "Q8_0",
    "Q6_K": "Q6_K",
    "Q5_1": "Q5_1",
    "Q5_K_M": "Q5_K",
    "Q5_K_S": "Q5_K",
    "Q5_0": "Q5_0",
    "Q4_1": "Q4_1",
    "Q4_K_M": "Q4_K",
    "Q4_K_S": "Q4_K",
    "Q4_0": "Q4_0",
    "Q3_K_L": "Q3_K",
    "Q3_K_M": "Q3_K",
    "Q3_K_S": "Q3_K",
    "Q2_K": "Q2_K",
}
"""File type -> the type most of its tensors have; from large to small."""

FALLBACKS = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
"""What a tensor becomes whose rows are no multiple of 256 (``tensor_type_fallback``)."""

CACHE_TYPES = ("f16", "q8_0", "q4_0")
"""Types of the KV cache that Ollama offers, from large to small."""


@dataclass(frozen=True)
class Tensor:
    """A tensor of a model.

    Attributes:
        name: as in GGUF, without the layer: ``attn_v``, ``ffn_down_exps``, ``output``.
        shape: elements, row length first.
        layer: which layer it belongs to; None for the input and output tensors.
    """

    name: str
    shape: tuple[int, ...]
    layer: int | None = None

    @property
    def elements(self) -> int:
        """Number of elements."""
        count = 1
        for size in self.shape:
            count *= size
        return count


@dataclass(frozen=True)
class Mixing:
    """What the mixture depends on besides the tensor.

    Attributes:
        layers: layers of the model.
        tied: whether the input embedding is the output too.
        gqa: query heads for each KV head.
        experts: experts of a layer; 0 without.
        is_70b: whether llama.cpp calls it ``LLM_TYPE_70B``: llama or qwen2 with 80 layers.
    """

    layers: int
    tied: bool
    gqa: int
    experts: int
    is_70b: bool


NEVER_QUANTISED = ("ffn_gate_inp", "position_embd", "token_types")


def size(tensor_type: str, elements: int) -> int:
    """Return the bytes of so many elements, a block begun counted whole."""
    block, bytes_ = BLOCKS[tensor_type]
    return -(-elements // block) * bytes_


def type_of(tensor: Tensor, file_type: str, mixing: Mixing) -> str:
    """Return the type a tensor has in a file of a quantisation."""
    if len(tensor.shape) < 2 or tensor.name in NEVER_QUANTISED:
        return "F32"
    base = FILE_TYPES[file_type]
    chosen = base if base in {"F16", "BF16"} else _mixed(tensor, file_type, base, mixing)
    if tensor.shape[0] % BLOCKS[chosen][0]:
        chosen = FALLBACKS.get(chosen, "F16")
        if tensor.shape[0] % BLOCKS[chosen][0]:
            return "F16"
    return chosen


def _mixed(tensor: Tensor, file_type: str, base: str, mixing: Mixing) -> str:
    name = tensor.name
    if name == "output" or (name == "token_embd" and mixing.tied):
        return "Q8_0" if base == "Q8_0" or tensor.shape[0] % BLOCKS[base][0] else "Q6_K"
    if name == "token_embd" or tensor.layer is None:
        return base
    if name in {"attn_v", "attn_qkv", "attn_kv_b", "attn_v_b"}:
        return _value(tensor.layer, file_type, base, mixing)
    if name == "attn_k":
        return "Q8_0" if mixing.experts == 8 else base
    if name.startswith("ffn_down"):
        return _down(tensor.layer, file_type, base, mixing.layers)
    if name == "attn_output":
        if mixing.experts == 8:
            return "Q5_K" if file_type in {"Q2_K", "Q3_K_S", "Q3_K_M", "Q4_K_S", "Q4_K_M"} else base
        return {"Q2_K": "Q3_K", "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K"}.get(file_type, base)
    return base


def _value(layer: int, file_type: str, base: str, mixing: Mixing) -> str:
    """Return the type of a tensor that makes values: few bytes, and the first to suffer."""
    chosen = base
    if file_type == "Q2_K":
        chosen = "Q4_K" if mixing.gqa >= 4 else "Q3_K"
    elif file_type == "Q3_K_M":
        chosen = "Q5_K" if layer < 2 else "Q4_K"
    elif file_type == "Q3_K_L" or (file_type == "Q4_K_S" and layer < 4):
        chosen = "Q5_K"
    elif file_type in {"Q4_K_M", "Q5_K_M"} and _more_bits(layer, mixing.layers):
        chosen = "Q6_K"
    if mixing.is_70b and chosen in {"Q3_K", "Q4_K"}:
        chosen = "Q5_K"
    return "Q8_0" if mixing.experts == 8 else chosen


def _down(layer: int, file_type: str, base: str, layers: int) -> str:
    if file_type == "Q2_K":
        return "Q3_K"
    if file_type == "Q3_K_M":
        return "Q5_K" if layer < layers // 16 else "Q4_K"
    if file_type == "Q3_K_L" or (file_type == "Q4_K_S" and layer < layers // 8):
        return "Q5_K"
    if file_type in {"Q4_K_M", "Q5_K_M"} and _more_bits(layer, layers):
        return "Q6_K"
    return base


def _more_bits(layer: int, layers: int) -> bool:
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2
