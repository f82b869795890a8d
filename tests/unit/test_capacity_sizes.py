"""Sizes of models and caches: computed figures against published and analytic ones, and GGUF files of every kind."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpurack.capacity.architecture import ARCHITECTURES, Architecture, parameter_count, tensors, weights
from gpurack.capacity.catalogue import Profile, UnknownModelError, catalogue, find
from gpurack.capacity.gguf_file import GgufError, read
from gpurack.capacity.memory import MIB, cache_bytes, graph_bytes, load, running
from gpurack.capacity.quants import BLOCKS, FILE_TYPES, size, type_of

DEEPSEEK = ("1.5b", "7b", "8b", "14b", "32b", "70b", "671b")


def cache(profile: Profile, **how: Any) -> int:
    """Return the bytes of a model's whole cache."""
    return load(profile, running(profile.architecture, **how)).cache


def test_blocks_are_ggmls() -> None:
    sizes = {kind.name: figures for kind, figures in gguf.GGML_QUANT_SIZES.items()}
    assert {name: sizes[name] for name in BLOCKS} == BLOCKS


@pytest.mark.parametrize("size_name", DEEPSEEK)
def test_deepseeks_sizes_are_the_published_ones(size_name: str) -> None:
    published = catalogue().model[f"deepseek-r1:{size_name}"].published
    assert published and find(f"deepseek-r1:{size_name}").weights.file == pytest.approx(published, rel=0.03)


@pytest.mark.parametrize("name", [name for name, entry in catalogue().model.items() if entry.published])
def test_every_other_size_is_the_published_one(name: str) -> None:
    assert find(name).weights.file == pytest.approx(catalogue().model[name].published, rel=0.03)


@pytest.mark.parametrize(
    ("name", "billions"),
    [("1.5b", 1.777), ("7b", 7.616), ("8b", 8.191), ("14b", 14.77), ("32b", 32.764), ("70b", 70.554), ("671b", 671.03)],
)
def test_parameters_are_those_of_the_model_cards(name: str, billions: float) -> None:
    assert parameter_count(find(f"deepseek-r1:{name}").architecture) == pytest.approx(billions * 1e9, rel=0.001)


def test_another_mixture_is_the_published_size_too() -> None:
    # nemotron:70b-instruct-q4_K_S has the dimensions of Llama 3.1 70B; its size as /api/tags gives it.
    assert find("llama3.1:70b-instruct-q4_K_S").weights.file == pytest.approx(40_347_238_813, rel=0.001)


def test_a_smaller_quantisation_never_takes_more() -> None:
    order = ["F16", "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q4_K_M", "Q4_K_S", "Q3_K_L", "Q3_K_M", "Q3_K_S", "Q2_K"]
    for model in catalogue().architecture.values():
        taken = [weights(model, file_type).file for file_type in order]
        assert taken[:7] == sorted(taken[:7], reverse=True) and max(taken[7:]) < taken[4]


@pytest.mark.parametrize("file_type", FILE_TYPES)
def test_what_is_on_devices_adds_up_to_the_file(file_type: str) -> None:
    for model in catalogue().architecture.values():
        found = weights(model, file_type)
        twice = found.input if model.tied else 0
        assert found.input + sum(found.layers) + found.output - twice == found.file
        assert sum(tensor.elements for tensor in tensors(model)) == parameter_count(model)


@pytest.mark.parametrize(("name", "layers", "heads"), [("7b", 28, 4), ("14b", 48, 8), ("32b", 64, 8), ("70b", 80, 8)])
def test_the_cache_of_grouped_query_attention_is_the_analytic_one(name: str, layers: int, heads: int) -> None:
    profile = find(f"deepseek-r1:{name}")
    numbers = 2 * layers * heads * 128  # keys and values
    assert cache(profile, context=8192, parallel=4) == numbers * 8192 * 4 * 2
    # A block of 32 numbers is 34 bytes in q8_0 and 18 in q4_0: a scale of two bytes each.
    assert cache(profile, context=8192, parallel=4, cache_type="q8_0") == numbers * 8192 * 4 * 34 // 32
    assert cache(profile, context=8192, parallel=4, cache_type="q4_0") == numbers * 8192 * 4 * 18 // 32


def test_the_cache_of_mla_is_the_analytic_one() -> None:
    profile = find("deepseek-r1:671b")
    assert cache(profile, context=4096, parallel=2) == 61 * (512 + 64) * 2 * 4096 * 2
    assert cache(profile, context=4096, parallel=1, cache_type="q8_0") == 61 * (512 + 64) * 34 // 32 * 4096
    # A file without attn_k_b and attn_v_b has 128 heads of keys (192) and values (128).
    old = profile.architecture.model_copy(update={"compressed_cache": False})
    run = running(old, context=4096, parallel=1)
    assert sum(cache_bytes(old, layer, run) for layer in range(61)) == 61 * 128 * (192 + 128) * 2 * 4096
    assert weights(old, "Q4_K_M").file == pytest.approx(profile.weights.file, rel=0.001)


def test_local_layers_keep_their_window() -> None:
    model = find("gemma3:1b").architecture
    run = running(model, context=32768, parallel=1)
    a_token = 2 * 1 * 256 * 2
    assert [cache_bytes(model, layer, run) // a_token for layer in range(6)] == [1024] * 5 + [32768]


def test_encoders_keep_nothing_and_no_context_is_longer_than_trained() -> None:
    assert cache(find("bge-m3"), context=8192, parallel=4) == 0
    run = running(find("mxbai-embed-large").architecture, context=32768, parallel=8)
    assert (run.context, run.parallel, run.batch) == (512, 1, 512)
    assert running(find("phi4").architecture, context=131072, parallel=1).context == 16384


def test_buffers_hold_logits_or_scores() -> None:
    model = find("llama3.1:8b").architecture
    run = running(model, context=4096, parallel=1)
    # llama.cpp reports 258.5 MiB of compute buffer for this model: logits and one residual stream of 512 tokens.
    assert graph_bytes(model, run) == 512 * (128256 + 4096) * 4 + 512 * 4096 * 4
    without = running(model, context=4096, parallel=1, flash_attention=False)
    assert graph_bytes(model, without) - graph_bytes(model, run) == 32 * 512 * 4096 * 4


def test_names_of_the_library_are_known_as_ollama_reads_them() -> None:
    assert find("DeepSeek-R1:7B").weights == find("registry.ollama.ai/library/deepseek-r1:7b").weights
    assert find("deepseek-r1").file_type == "Q4_K_M"
    assert find("deepseek-r1:7b-qwen-distill-q8_0").weights.file > find("deepseek-r1:7b").weights.file
    assert find("llama3.1:8b-instruct-fp16").file_type == "F16"
    assert find("llama3.1:8b").smaller[0] == "llama3.1:8b-instruct-q4_K_S"
    assert find("deepseek-r1:70b").lesser[0] == "deepseek-r1:32b"
    for name in find("llama3.1:70b").smaller + find("deepseek-r1:671b").lesser:
        assert find(name)


@pytest.mark.parametrize("name", ["mystery:7b", "deepseek-r1:7b-qwen-distill-q2_K", "hf.co/someone/deepseek-r1:7b"])
def test_an_unknown_model_is_not_guessed(name: str) -> None:
    with pytest.raises(UnknownModelError, match=r"not in gpurack's catalogue.*\.gguf"):
        find(name)


Write = Callable[..., Path]
DIMENSIONS = {
    "block_count": 2,
    "context_length": 512,
    "embedding_length": 64,
    "feed_forward_length": 128,
    "head_count": 4,
    "head_count_kv": 2,
}


def written(path: Path, *, architecture: str = "llama", left_out: str = "", **changed: Any) -> Path:
    """Write a small GGUF file with the tensors that an architecture has."""
    figures = {**DIMENSIONS, **changed}
    writer = gguf.GGUFWriter(path, architecture)
    for name in ("block_count", "context_length", "embedding_length", "feed_forward_length"):
        if name != left_out:
            getattr(writer, f"add_{name}")(figures[name])
    writer.add_head_count(figures["head_count"])
    writer.add_head_count_kv(figures["head_count_kv"])
    writer.add_token_list([f"t{number}" for number in range(96)])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    model = Architecture(
        architecture="llama",
        block_count=2,
        embedding_length=64,
        feed_forward_length=128,
        head_count=4,
        head_count_kv=2,
        key_length=16,
        value_length=16,
        vocabulary=96,
        context_length=512,
    )
    for tensor in tensors(model):
        name = tensor.name if tensor.layer is None else f"blk.{tensor.layer}.{tensor.name}"
        if f"{name}.weight" != left_out:
            kind = np.float16 if len(tensor.shape) > 1 else np.float32
            writer.add_tensor(f"{name}.weight", np.zeros(tuple(reversed(tensor.shape)), kind))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_file_says_what_it_is_made_of(tmp_path: Path) -> None:
    found = read(written(tmp_path / "tiny.gguf"), "tiny:1")
    model = found.architecture
    assert (model.block_count, model.head_count_kv, model.key_length, model.vocabulary) == (2, 2, 16, 96)
    assert (found.name, found.file_type, model.tied) == ("tiny:1", "F16", False)
    assert found.weights == weights(model, "F16")
    assert found.weights.file < (tmp_path / "tiny.gguf").stat().st_size
    assert load(found, running(model, context=512, parallel=1)).cache == 2 * 2 * 2 * 16 * 512 * 2
    # What Ollama will quantise it to is computed.
    assert read(tmp_path / "tiny.gguf", "tiny:2", quantise="Q8_0").weights == weights(model, "Q8_0")


SMALL: dict[str, dict[str, Any]] = {
    "gemma2": {"tied": True, "sliding_window": 512, "global_every": 2},
    "gemma3": {"tied": True, "sliding_window": 512, "global_every": 6},
    "qwen3moe": {"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 96},
    "deepseek2": {
        "head_count_kv": 4,
        "key_length": 24,
        "value_length": 16,
        "expert_count": 4,
        "expert_used_count": 2,
        "expert_feed_forward_length": 96,
        "expert_shared_count": 1,
        "leading_dense_block_count": 1,
        "q_lora_rank": 32,
        "kv_lora_rank": 32,
        "rope_length": 8,
    },
    "bert": {"head_count_kv": 4, "positions": 256},
    "nomic-bert": {"head_count_kv": 4},
}


def whole_model(path: Path, model: Architecture) -> Path:
    """Write a model's GGUF file with the metadata that llama.cpp's converter writes."""
    writer, name = gguf.GGUFWriter(path, model.architecture), model.architecture
    compressed = model.compressed_cache
    figures = {
        "block_count": model.block_count,
        "context_length": model.context_length,
        "embedding_length": model.embedding_length,
        "feed_forward_length": model.feed_forward_length,
        "attention.head_count": model.head_count,
        "attention.head_count_kv": 1 if compressed else model.head_count_kv,
        "attention.key_length": model.kv_lora_rank + model.rope_length if compressed else model.key_length,
        "attention.value_length": model.kv_lora_rank if compressed else model.value_length,
        "attention.key_length_mla": model.key_length if compressed else 0,
        "attention.value_length_mla": model.value_length if compressed else 0,
        "attention.sliding_window": model.sliding_window,
        "attention.q_lora_rank": model.q_lora_rank,
        "attention.kv_lora_rank": model.kv_lora_rank,
        "rope.dimension_count": model.rope_length or model.key_length,
        "expert_count": model.expert_count,
        "expert_used_count": model.expert_used_count,
        "expert_feed_forward_length": model.expert_feed_forward_length,
        "expert_shared_count": model.expert_shared_count,
        "leading_dense_block_count": model.leading_dense_block_count,
    }
    for key, value in figures.items():
        if value:
            writer.add_uint32(f"{name}.{key}", value)
    writer.add_token_list([f"t{number}" for number in range(model.vocabulary)])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    for tensor in tensors(model):
        prefix = "" if tensor.layer is None else f"blk.{tensor.layer}."
        kind = np.float16 if type_of(tensor, "F16", model.mixing) == "F16" else np.float32
        writer.add_tensor(f"{prefix}{tensor.name}.weight", np.zeros(tuple(reversed(tensor.shape)), kind))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(("name", "compressed"), [*((name, False) for name in ARCHITECTURES), ("deepseek2", True)])
def test_every_architecture_is_read_as_it_was_written(tmp_path: Path, name: str, compressed: bool) -> None:
    figures: dict[str, Any] = {**DIMENSIONS, "key_length": 16, "value_length": 16, "vocabulary": 96}
    figures |= {"block_count": 7, "context_length": 4096, "architecture": name, **SMALL.get(name, {})}
    model = Architecture.model_validate({**figures, "compressed_cache": compressed})
    found = read(whole_model(tmp_path / "model.gguf", model), "model")
    assert found.architecture == model
    assert found.weights == weights(model, "F16")
    run = running(model, context=4096, parallel=2)
    assert load(found, run).cache == sum(cache_bytes(model, layer, run) for layer in range(7))


def test_a_file_that_changed_is_read_again(tmp_path: Path) -> None:
    path = written(tmp_path / "tiny.gguf")
    assert not read(path, "tiny").architecture.tied
    written(path, left_out="output.weight")
    assert read(path, "tiny").architecture.tied


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"architecture": "mamba"}, "architecture 'mamba' is not known.*known are llama"),
        ({"left_out": "block_count"}, "llama.block_count is missing"),
        ({"block_count": 0}, "block_count"),
        ({"block_count": 1}, "blk.1.* belongs to no layer of its 1"),
        ({"block_count": 3}, "layer 2 of 3 has no tensors"),
        ({"head_count": 0}, "head_count is 0"),
    ],
)
def test_a_file_that_cannot_be_planned_for_says_why(tmp_path: Path, how: dict[str, Any], words: str) -> None:
    path = written(tmp_path / "wrong.gguf", **how)
    with pytest.raises(GgufError, match=rf"wrong\.gguf: .*{words}"):
        read(path, "wrong")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"GGUF",
        b"not a model at all" * 10,
        b"GGUF" + struct.pack("<IQQ", 3, 2**63, 2**63),
        b"GGUF" + struct.pack("<IQQ", 99, 0, 0),
        # A list of 2^62 numbers, and one of lists that never end.
        b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"a", 9, 4, 2**62),
        b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"a", 9, 9, 2**20) + struct.pack("<IQ", 9, 1) * 4000,
        # A key longer than the file, and one that is no text.
        b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**61),
        b"GGUF" + struct.pack("<IQQQ2sIB", 3, 0, 1, 2, b"\xff\xfe", 0, 1),
    ],
)
def test_what_is_no_model_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    with pytest.raises(GgufError, match=r"bad\.gguf: "):
        read(path, "bad")


def test_files_that_are_not_there_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(GgufError, match=r"none\.gguf: No such file"):
        read(tmp_path / "none.gguf", "none")
    with pytest.raises(GgufError, match="not a file"):
        read(tmp_path, "folder")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A good file's content."""
    return written(tmp_path_factory.mktemp("gguf") / "tiny.gguf").read_bytes()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(data=st.data())
def test_a_file_cut_anywhere_is_refused_by_name(whole: bytes, tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 33))])
    with pytest.raises(GgufError, match=r"cut\.gguf: "):
        read(path, "cut")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(data=st.data())
def test_a_damaged_file_is_refused_or_read_and_never_breaks(whole: bytes, tmp_path: Path, data: st.DataObject) -> None:
    damaged = bytearray(whole)
    head = whole.index(b"token_embd")
    for at in data.draw(st.lists(st.integers(0, head + 200), min_size=1, max_size=8)):
        damaged[at] = data.draw(st.integers(0, 255))
    path = tmp_path / "damaged.gguf"
    path.write_bytes(bytes(damaged))
    try:
        read(path, "damaged")
    except GgufError as error:
        assert "damaged.gguf: " in str(error)


def test_a_block_begun_counts_whole() -> None:
    assert size("Q4_K", 257) == 288 and size("F16", 3) == 6 and MIB == 2**20
