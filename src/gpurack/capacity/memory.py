"""Memory a model needs when it runs: weights, the cache of its context, and the buffers of the computation.

Ollama starts one ``llama-server`` for each loaded model, with ``-c num_ctx * num_parallel -np num_parallel``
(``llm/llama_server.go``), so that each parallel request has its own context.
"""

from __future__ import annotations

from dataclasses import dataclass

from gpurack.capacity.architecture import Architecture
from gpurack.capacity.catalogue import Profile
from gpurack.capacity.quants import size

MIB = 1024**2
GIB = 1024**3

CONTEXT_STEP = 256
"""llama.cpp rounds the context of a request up to this many tokens (``GGML_PAD(n_ctx_seq, 256)``)."""

BATCH = 512
"""Tokens of a prompt that are computed at once. Ollama takes more where there is room (``automaticGenerationBatch`` in
``server/sched.go``) and goes back to this where there is not: so this must fit."""

EMBEDDING_BATCH = 2048
"""The same for models that make embeddings, no more than their context (``DefaultEmbeddingNumBatchForContext``)."""

GPU_CONTEXT = 457 * MIB
"""Memory of a GPU for each process that uses it, CUDA's own (``MinimumMemory`` in Ollama's ``ml/device.go``)."""


@dataclass(frozen=True)
class Running:
    """How a model runs.

    Attributes:
        context: tokens of a request, already what the model was trained for at most.
        parallel: requests at once.
        cache_type: ``f16``, ``q8_0`` or ``q4_0``.
        flash_attention: whether attention is computed without keeping all its scores.
        batch: tokens of a prompt at once.
    """

    context: int
    parallel: int
    cache_type: str
    flash_attention: bool
    batch: int


def running(
    model: Architecture,
    *,
    context: int,
    parallel: int,
    cache_type: str = "f16",
    flash_attention: bool = True,
    batch: int | None = None,
) -> Running:
    """Return how Ollama would run a model: no more context than trained for, one request at a time for embeddings."""
    context = min(context, model.context_length)
    parallel = 1 if model.embeds else parallel
    default = min(EMBEDDING_BATCH, context) if model.embeds else BATCH
    return Running(context, parallel, cache_type, flash_attention, batch or default)


def cache_bytes(model: Architecture, layer: int, run: Running) -> int:
    """Return the bytes of a layer's cache: context, times parallel requests, times a token's keys and values.

    Grouped-query attention keeps ``head_count_kv`` keys and values; MLA in its compressed form keeps
    ``kv_lora_rank + rope_length`` numbers for all heads together, and no values (``has_v = !is_mla`` in llama.cpp's
    ``llama-kv-cache.cpp``). A local layer keeps its window and one batch. Encoders keep nothing.
    """
    if model.embeds:
        return 0
    tokens = _up(run.context)
    if model.is_local(layer):
        tokens = min(tokens, _up(model.sliding_window + run.batch))
    if model.compressed_cache:
        a_token = size(_type(run), model.kv_lora_rank + model.rope_length)
    else:
        a_token = size(_type(run), model.head_count_kv * model.key_length)
        a_token += size(_type(run), model.head_count_kv * model.value_length)
    return tokens * run.parallel * a_token


def graph_bytes(model: Architecture, run: Running) -> int:
    """Return the bytes of the compute buffers on each device a model is on.

    After ``GraphSize`` in Ollama's ``fs/ggml/ggml.go``: the larger of the output's logits, ``4 batch (width +
    vocabulary)``, and of a layer, ``4 batch (1 + 4 width + context (1 + heads))``, whose term of the context is the
    attention's scores; flash attention keeps none of these, and a mask of ``4 batch context`` instead. Derived here,
    not Ollama's: the feed-forward part's own ``8 batch inner width`` in a layer.
    """
    width, tokens = model.embedding_length, _up(run.context) * run.parallel
    inner = max(model.feed_forward_length, model.expert_feed_forward_length * model.expert_used_count)
    logits = 0 if model.embeds else 4 * run.batch * (width + model.vocabulary)
    layer = 4 * run.batch * (1 + 4 * width + 2 * inner)
    scores = 4 * run.batch * tokens * (1 if run.flash_attention else 1 + model.head_count)
    return max(logits, layer) + scores


def _up(tokens: int) -> int:
    return -(-tokens // CONTEXT_STEP) * CONTEXT_STEP


def _type(run: Running) -> str:
    return run.cache_type.upper()


@dataclass(frozen=True)
class Load:
    """A model's memory, in the pieces that are placed.

    Attributes:
        profile: the model.
        run: how it runs.
        caches: bytes of each layer's cache.
        graph: bytes of compute buffers on each device that has some of the model.
    """

    profile: Profile
    run: Running
    caches: tuple[int, ...]
    graph: int

    @property
    def weights(self) -> int:
        """Bytes of all tensors."""
        return self.profile.weights.file

    @property
    def cache(self) -> int:
        """Bytes of the whole cache."""
        return sum(self.caches)

    @property
    def pieces(self) -> tuple[int, ...]:
        """Bytes of each layer with its cache, and of the output behind the last: what goes to one device each."""
        layers = self.profile.weights.layers
        return (*(sum(pair) for pair in zip(layers, self.caches, strict=True)), self.profile.weights.output)

    @property
    def predicted(self) -> int:
        """What Ollama predicts before it loads: the file and a cache in f16 (``PredictServerVRAM``)."""
        model = self.profile.architecture
        head = model.embedding_length // model.head_count
        tokens = self.run.context * self.run.parallel
        # In files with a compressed cache head_count_kv is 1, and those of encoders do not state it.
        heads = 1 if model.compressed_cache or model.embeds else model.head_count_kv
        return self.weights + 2 * model.block_count * heads * head * tokens * 2


def load(profile: Profile, run: Running) -> Load:
    """Return a model's memory."""
    model = profile.architecture
    caches = tuple(cache_bytes(model, layer, run) for layer in range(model.block_count))
    return Load(profile, run, caches, graph_bytes(model, run))
