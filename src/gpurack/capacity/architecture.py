"""What a model is made of: its dimensions, the tensors that follow from them, and the bytes they take."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from gpurack.capacity.quants import Mixing, Tensor, size, type_of

DECODERS = ("llama", "qwen2", "qwen3", "qwen3moe", "gemma2", "gemma3", "phi3", "deepseek2")
ENCODERS = ("bert", "nomic-bert")
ARCHITECTURES = (*DECODERS, *ENCODERS)
"""Architectures, as ``general.architecture`` of GGUF names them, whose tensors and cache are known here."""


class Architecture(BaseModel):
    """Dimensions of a model, named as in GGUF's metadata.

    Attributes:
        architecture: one of :data:`ARCHITECTURES`.
        block_count: layers.
        embedding_length: width of the residual stream.
        feed_forward_length: width of a dense layer's feed-forward part.
        head_count: query heads.
        head_count_kv: heads of keys and values (grouped-query attention).
        key_length: of a head.
        value_length: of a head.
        vocabulary: tokens.
        context_length: tokens it was trained for; Ollama gives no more.
        tied: the input embedding is the output too.
        sliding_window: tokens that a local layer looks back; 0 without local layers.
        global_every: every so-manieth layer looks at the whole context, the others at the window.
        expert_count: experts of a layer; 0 for a dense model.
        expert_used_count: experts asked for each token.
        expert_feed_forward_length: width of an expert.
        expert_shared_count: experts asked for every token.
        leading_dense_block_count: layers at the beginning without experts.
        q_lora_rank: MLA, width of the compressed query.
        kv_lora_rank: MLA, width of the compressed key and value; 0 for other attention.
        rope_length: MLA, width of the part of a key with a position.
        compressed_cache: MLA, whether the file has the tensors with which the compressed form is kept in the cache
            (``attn_k_b`` and ``attn_v_b``); files from before llama.cpp's #12801 have not, and the cache is full size.
        positions: learned positions of an encoder; 0 without.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    architecture: str
    block_count: int = Field(ge=1, le=1000)
    embedding_length: int = Field(ge=1, le=1_000_000)
    feed_forward_length: int = Field(ge=0, le=10_000_000)
    head_count: int = Field(ge=1, le=10_000)
    head_count_kv: int = Field(ge=1, le=10_000)
    key_length: int = Field(ge=1, le=100_000)
    value_length: int = Field(ge=1, le=100_000)
    vocabulary: int = Field(ge=1, le=10_000_000)
    context_length: int = Field(ge=1, le=1_000_000_000)
    tied: bool = False
    sliding_window: int = Field(0, ge=0)
    global_every: int = Field(1, ge=1)
    expert_count: int = Field(0, ge=0, le=10_000)
    expert_used_count: int = Field(0, ge=0, le=10_000)
    expert_feed_forward_length: int = Field(0, ge=0, le=10_000_000)
    expert_shared_count: int = Field(0, ge=0, le=1000)
    leading_dense_block_count: int = Field(0, ge=0, le=1000)
    q_lora_rank: int = Field(0, ge=0)
    kv_lora_rank: int = Field(0, ge=0)
    rope_length: int = Field(0, ge=0)
    compressed_cache: bool = False
    positions: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.architecture not in ARCHITECTURES:
            raise ValueError(
                f"architecture {self.architecture!r} is not known here; known are {', '.join(ARCHITECTURES)}"
            )
        if self.compressed_cache and not self.kv_lora_rank:
            raise ValueError("a compressed cache needs kv_lora_rank")
        return self

    @property
    def embeds(self) -> bool:
        """Whether it makes embeddings, and no text."""
        return self.architecture in ENCODERS

    def is_local(self, layer: int) -> bool:
        """Whether a layer looks back over the sliding window alone."""
        return bool(self.sliding_window) and (layer + 1) % self.global_every != 0

    def has_experts(self, layer: int) -> bool:
        """Whether a layer's feed-forward part is one of experts."""
        return bool(self.expert_count) and layer >= self.leading_dense_block_count

    @property
    def mixing(self) -> Mixing:
        """What the mixture of tensor types depends on."""
        return Mixing(
            layers=self.block_count,
            tied=self.tied,
            gqa=self.head_count // self.head_count_kv,
            experts=self.expert_count,
            is_70b=self.architecture in {"llama", "qwen2"} and self.block_count == 80,
        )


def tensors(model: Architecture) -> Iterator[Tensor]:
    """Yield every tensor of a model's GGUF file, as llama.cpp's converter makes them; the shape's row comes first."""
    width = model.embedding_length
    yield Tensor("token_embd", (width, model.vocabulary))
    if model.embeds:
        yield from _encoder_input(model)
    else:
        yield Tensor("output_norm", (width,))
        if not model.tied:
            yield Tensor("output", (width, model.vocabulary))
    for layer in range(model.block_count):
        for name, *shape in (*_attention(model), *_feed_forward(model, layer)):
            yield Tensor(str(name), tuple(int(number) for number in shape), layer)


def _encoder_input(model: Architecture) -> Iterator[Tensor]:
    width = model.embedding_length
    if model.positions:
        yield Tensor("position_embd", (width, model.positions))
    yield Tensor("token_types", (width, 2))
    yield Tensor("token_embd_norm", (2 * width,))


_Named = tuple[str | int, ...]


def _attention(model: Architecture) -> Iterator[_Named]:
    width = model.embedding_length
    query, key = model.head_count * model.key_length, model.head_count_kv * model.key_length
    value, output = model.head_count_kv * model.value_length, model.head_count * model.value_length
    if model.kv_lora_rank:
        yield from _latent_attention(model)
        yield "attn_output", output, width
        return
    if model.architecture in {"phi3", "nomic-bert"}:
        yield "attn_qkv", width, query + key + value
    else:
        yield "attn_q", width, query
        yield "attn_k", width, key
        yield "attn_v", width, value
    yield "attn_output", output, width
    yield "attn_norm", width
    if model.architecture in {"qwen2", "bert"}:
        yield "attn_bias", query + key + value
    if model.architecture in {"qwen3", "qwen3moe", "gemma3"}:
        yield "attn_qk_norm", 2 * model.key_length
    if model.architecture in {"gemma2", "gemma3"}:
        yield "post_norms", 2 * width


def _latent_attention(model: Architecture) -> Iterator[_Named]:
    """Yield MLA's tensors: both forms of keys and values have the same number of elements."""
    width, plain = model.embedding_length, model.key_length - model.rope_length
    if model.q_lora_rank:
        yield "attn_q_a", width, model.q_lora_rank
        yield "attn_q_b", model.q_lora_rank, model.head_count * model.key_length
    else:
        yield "attn_q", width, model.head_count * model.key_length
    yield "attn_kv_a_mqa", width, model.kv_lora_rank + model.rope_length
    if model.compressed_cache:
        yield "attn_k_b", plain, model.kv_lora_rank, model.head_count
        yield "attn_v_b", model.kv_lora_rank, model.value_length, model.head_count
    else:
        yield "attn_kv_b", model.kv_lora_rank, model.head_count * (plain + model.value_length)
    yield "attn_norms", width + model.q_lora_rank + model.kv_lora_rank


def _feed_forward(model: Architecture, layer: int) -> Iterator[_Named]:
    width, inner = model.embedding_length, model.feed_forward_length
    yield "ffn_norm", width
    if model.has_experts(layer):
        inner, count = model.expert_feed_forward_length, model.expert_count
        yield "ffn_gate_inp", width, count
        yield "ffn_gate_exps", width, inner, count
        yield "ffn_up_exps", width, inner, count
        yield "ffn_down_exps", inner, width, count
        if shared := model.expert_shared_count * inner:
            yield "ffn_gate_shexp", width, shared
            yield "ffn_up_shexp", width, shared
            yield "ffn_down_shexp", shared, width
        return
    if model.architecture == "phi3":
        yield "ffn_up", width, 2 * inner
    else:
        yield "ffn_up", width, inner
        if model.architecture != "bert":
            yield "ffn_gate", width, inner
    yield "ffn_down", inner, width
    if model.architecture == "bert":
        yield "biases", inner + 6 * width


@dataclass(frozen=True)
class Weights:
    """Bytes of a model's tensors, by where they go.

    Attributes:
        input: the input embedding and what belongs to it; stays in the host's memory.
        layers: of each layer.
        output: output embedding and norm; on the GPU behind the last layer. A tied embedding is there a second time.
        file: of all tensors in the file, which is what is downloaded but for some MB of tokens and metadata.
    """

    input: int
    layers: tuple[int, ...]
    output: int
    file: int


def weights(model: Architecture, file_type: str, *, kept: Mapping[str, str] = MappingProxyType({})) -> Weights:
    """Return the bytes of a model's tensors.

    Args:
        model: its dimensions.
        file_type: a quantisation of :data:`gpurack.capacity.quants.FILE_TYPES`.
        kept: tensor name -> type of those that its maker did not quantise like the rest.
    """
    mixing = model.mixing
    layers = [0] * model.block_count
    outside = {"input": 0, "output": 0}
    for tensor in tensors(model):
        taken = size(kept.get(tensor.name) or type_of(tensor, file_type, mixing), tensor.elements)
        if tensor.layer is not None:
            layers[tensor.layer] += taken
        else:
            outside["output" if tensor.name in {"output", "output_norm"} else "input"] += taken
    file = sum(layers) + sum(outside.values())
    if model.tied:
        outside["output"] += outside["input"]
    return Weights(input=outside["input"], layers=tuple(layers), output=outside["output"], file=file)


def parameter_count(model: Architecture) -> int:
    """Return the number of a model's parameters."""
    return sum(tensor.elements for tensor in tensors(model))
