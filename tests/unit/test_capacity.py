"""Plans: where models go, whether they fit, what would make them fit, and what may never happen to a plan."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from gpurack.capacity import obstacles_in
from gpurack.capacity.catalogue import catalogue, find
from gpurack.capacity.changes import changes_for
from gpurack.capacity.hardware import DeclaredHardware, Device, Hardware, HardwareError, declared, found, usable
from gpurack.capacity.memory import GIB, GPU_CONTEXT, MIB, load, running
from gpurack.capacity.placement import place
from gpurack.capacity.plan import Server, Situation, Verdict, Wanted, evaluate, plan
from gpurack.capacity.recommend import band, comparison, recommend
from gpurack.capacity.situations import declared_hardware, read_hardware, situation
from gpurack.facts.capacity import ModelRoom, Room
from gpurack.gpu.models import Architecture, Card, Gpu, GpuProcess, MigInstance, NvmlReport, PciInventory
from roles.capacity.settings import CapacitySettings
from roles.ollama.settings import OllamaSettings
from roles.ollama_models.settings import OllamaModelsSettings


def host(*gpus: int, ram: int = 64, disk: int | None = None, **hardware: Any) -> Hardware:
    """Return hardware with GPUs of so many GiB."""
    devices = tuple(Device(name=f"{memory} GB", memory_bytes=memory * GIB) for memory in gpus)
    return Hardware(
        source="declared",
        devices=devices,
        ram_bytes=ram * GIB,
        disk_bytes=None if disk is None else disk * GIB,
        **hardware,
    )


def model(name: str, **how: Any) -> Wanted:
    """Return a model of the catalogue that is wanted, with a context unless said otherwise."""
    return Wanted(name, find(name), **{"num_ctx": 4096, **how})


def on(hardware: Hardware, *models: Wanted, **server: Any) -> Situation:
    """Return a situation."""
    return Situation(hardware, Server(**server), models)


def verdicts(wanted: Situation) -> list[Verdict]:
    """Return the verdicts of a plan."""
    return [found.verdict for found in plan("h", wanted).models]


NAMES = [name for name in catalogue().model if name != "all-minilm:22m"]
MODELS = st.sampled_from(NAMES)
GPUS = st.lists(st.sampled_from([4, 8, 12, 16, 24, 48, 80, 141]), max_size=9)
RUN = {
    "context": st.integers(256, 140_000),
    "parallel": st.integers(1, 16),
    "cache_type": st.sampled_from(["f16", "q8_0", "q4_0"]),
    "flash_attention": st.booleans(),
}


@given(MODELS, GPUS, st.booleans(), st.one_of(st.none(), st.integers(0, 90)), st.fixed_dictionaries(RUN))
def test_shares_add_up_and_no_gpu_is_overfull(
    name: str, gpus: list[int], spread: bool, wanted: int | None, how: dict[str, Any]
) -> None:
    needed = load(find(name), running(find(name).architecture, **how))
    free = [memory * GIB for memory in gpus]
    put = place(needed, free, spread=spread, wanted=wanted)
    assert sum(put.gpu_layers) + put.cpu_layers == len(needed.pieces)
    assert all(taken <= room for taken, room in zip(put.gpu_bytes, free, strict=True))
    assert wanted is None or sum(put.gpu_layers) <= wanted
    used = sum(1 for layers in put.gpu_layers if layers)
    buffers = used * (GPU_CONTEXT + needed.graph) + (needed.graph if put.cpu_layers else 0)
    weights = needed.profile.weights
    # A tied embedding is on the GPU with the output, and in the host's memory.
    twice = weights.input if needed.profile.architecture.tied and sum(put.gpu_layers) else 0
    assert sum(put.gpu_bytes) + put.ram_bytes == needed.weights + needed.cache + buffers + twice


@given(MODELS, st.fixed_dictionaries(RUN), st.integers(0, 100_000))
def test_more_context_never_needs_less(name: str, how: dict[str, Any], more: int) -> None:
    assert_no_less(name, how, {**how, "context": how["context"] + more})


@given(MODELS, st.fixed_dictionaries(RUN), st.integers(0, 16))
def test_more_requests_never_need_less(name: str, how: dict[str, Any], more: int) -> None:
    assert_no_less(name, how, {**how, "parallel": how["parallel"] + more})


@given(MODELS, st.fixed_dictionaries(RUN))
def test_a_smaller_cache_type_never_needs_more(name: str, how: dict[str, Any]) -> None:
    for larger, smaller in pairwise(["f16", "q8_0", "q4_0"]):
        assert_no_less(name, {**how, "cache_type": smaller}, {**how, "cache_type": larger})


def assert_no_less(name: str, less: dict[str, Any], more: dict[str, Any]) -> None:
    """Fail if a model needs less of anything when run in the second way."""
    profile = find(name)
    small, large = (load(profile, running(profile.architecture, **how)) for how in (less, more))
    assert all(one <= other for one, other in zip(small.pieces, large.pieces, strict=True))
    assert small.graph <= large.graph and small.predicted <= large.predicted


@given(MODELS, GPUS, st.sampled_from([4, 16, 64, 512]), st.integers(256, 140_000), st.integers(1, 16))
def test_what_fits_fits_with_less(name: str, gpus: list[int], ram: int, context: int, parallel: int) -> None:
    wanted = on(host(*gpus, ram=ram), model(name, num_ctx=context), num_parallel=parallel)
    if evaluate(wanted)[0].verdict is not Verdict.FITS:
        return
    shorter = on(host(*gpus, ram=ram), model(name, num_ctx=max(256, context // 2)), num_parallel=parallel)
    fewer = on(host(*gpus, ram=ram), model(name, num_ctx=context), num_parallel=max(1, parallel // 2))
    assert evaluate(shorter)[0].verdict is evaluate(fewer)[0].verdict is Verdict.FITS
    for other in find(name).smaller:
        smaller = on(host(*gpus, ram=ram), model(other, num_ctx=context), num_parallel=parallel)
        # Q2_K and Q3_K_S keep some tensors larger; what they take in all is less, see the tests of sizes.
        if find(other).file_type in {"Q4_K_S", "Q3_K_M"}:
            assert evaluate(smaller)[0].verdict is Verdict.FITS


@given(MODELS, GPUS, st.sampled_from([4, 8, 24, 80]), st.booleans(), st.integers(256, 140_000), st.integers(1, 8))
def test_another_gpu_never_makes_a_model_not_fit(
    name: str, gpus: list[int], more: int, spread: bool, context: int, parallel: int
) -> None:
    wanted = model(name, num_ctx=context)
    if evaluate(on(host(*gpus), wanted, num_parallel=parallel, spread=spread))[0].verdict is Verdict.FITS:
        after = on(host(*gpus, more), wanted, num_parallel=parallel, spread=spread)
        assert evaluate(after)[0].verdict is Verdict.FITS


@given(st.lists(MODELS, min_size=1, max_size=4, unique=True), GPUS, st.booleans(), st.integers(1, 4))
def test_residents_never_take_more_than_there_is(
    names: list[str], gpus: list[int], offload: bool, parallel: int
) -> None:
    models = [model(name, resident=True) for name in names]
    plans = evaluate(replace(on(host(*gpus), *models, num_parallel=parallel), cpu_offload=offload))
    for index, memory in enumerate(gpus):
        assert sum(found.placement.gpu_bytes[index] for found in plans if found.placement) <= memory * GIB
    assert {found.wanted.name for found in plans} == set(names)


@pytest.mark.parametrize(
    ("name", "gpus", "context", "parallel"),
    [
        ("deepseek-r1:1.5b", [4], 4096, 1),
        ("deepseek-r1:7b", [8], 4096, 1),
        ("deepseek-r1:14b", [24], 8192, 4),
        ("deepseek-r1:32b", [24], 8192, 1),
        ("deepseek-r1:70b", [24] * 4, 8192, 4),
        ("deepseek-r1:70b", [80], 8192, 4),
        ("deepseek-r1:671b", [80] * 8, 8192, 4),
    ],
)
def test_the_cards_of_the_planning_table_do(name: str, gpus: list[int], context: int, parallel: int) -> None:
    assert verdicts(on(host(*gpus), model(name, num_ctx=context), num_parallel=parallel)) == [Verdict.FITS]


def test_layers_are_split_by_free_memory() -> None:
    [found] = evaluate(on(host(24, 48), model("deepseek-r1:70b", num_ctx=8192)))
    assert found.placement and sum(found.placement.gpu_layers) == 81
    one, two = found.placement.gpu_layers
    assert two == pytest.approx(2 * one, abs=2)
    # A model that one GPU holds goes to one alone, the freest; unless it is to be spread.
    [alone] = evaluate(on(host(24, 48), model("deepseek-r1:7b")))
    assert alone.placement and alone.placement.gpu_layers == (0, 29)
    [spread] = evaluate(on(host(24, 48), model("deepseek-r1:7b"), spread=True))
    assert spread.placement and all(spread.placement.gpu_layers)


def test_what_does_not_fit_spills_and_says_so() -> None:
    wanted = on(host(24), model("deepseek-r1:70b", num_ctx=8192))
    [found] = plan("h", wanted).models
    assert found.verdict is Verdict.FITS_WITH and found.placement
    assert found.placement.cpu_layers == 81 - found.placement.gpu_layers[0] > 20
    assert f"{found.placement.cpu_layers} of 81 layers" in found.reasons[0]
    assert verdicts(replace(wanted, cpu_offload=True)) == [Verdict.FITS]
    # Layers that num_gpu leaves to the CPU are meant to be there.
    assert verdicts(on(host(24), model("deepseek-r1:70b", num_gpu=20))) == [Verdict.FITS]
    # The host's memory must hold what is left.
    assert verdicts(replace(on(host(24, ram=16), model("deepseek-r1:70b", num_gpu=20)))) == [Verdict.FITS_WITH]


def test_changes_are_the_cheapest_first_and_each_is_enough() -> None:
    one = on(host(24), model("deepseek-r1:32b", num_ctx=24576))
    assert changes_for(one, one.models[0]) == (
        "ollama.flash_attention = True with kv_cache_type = q8_0",
        "a context of 15360 tokens (num_ctx)",
        "ollama.kv_cache_type = q4_0 (answers may suffer)",
        "capacity.cpu_offload = True: what does not fit the GPUs is computed by the CPU, several times slower",
        "the model deepseek-r1:14b in its place",
        "1 more GPU like 24 GB",
        "1 x 32 GB (RTX 5090) in place of the GPUs",
    )
    # As proposed, it fits.
    assert verdicts(on(host(24), model("deepseek-r1:32b", num_ctx=15360))) == [Verdict.FITS]
    assert verdicts(on(host(24), *one.models, cache_type="q8_0", flash_attention=True)) == [Verdict.FITS]
    assert verdicts(on(host(24, 24), *one.models)) == verdicts(on(host(32), *one.models)) == [Verdict.FITS]


def test_settings_are_added_up_where_one_is_not_enough() -> None:
    wanted = on(host(24), model("deepseek-r1:32b", num_ctx=32768), num_parallel=4)
    first, second, *_ = changes_for(wanted, wanted.models[0])
    assert first == (
        "ollama.flash_attention = True with kv_cache_type = q8_0 and ollama.num_parallel = 1 "
        "and a context of 28672 tokens (num_ctx)"
    )
    assert second.startswith("capacity.cpu_offload")
    server = {"cache_type": "q8_0", "flash_attention": True}
    assert verdicts(on(host(24), model("deepseek-r1:32b", num_ctx=28672), **server)) == [Verdict.FITS]
    assert verdicts(on(host(24), model("deepseek-r1:32b", num_ctx=28672))) == [Verdict.FITS_WITH]


def test_a_smaller_quantisation_is_proposed_where_the_library_has_one() -> None:
    changes = changes_for(wanted := on(host(8), model("llama3.1:8b-instruct-q8_0")), wanted.models[0])
    assert "the quantisation llama3.1:8b-instruct-q5_1 in its place" in changes
    assert verdicts(on(host(8), model("llama3.1:8b-instruct-q5_1"))) == [Verdict.FITS]
    assert verdicts(on(host(8), model("llama3.1:8b-instruct-q6_K"))) != [Verdict.FITS]


def test_more_gpus_are_proposed_with_the_context_that_was_meant() -> None:
    # Undeclared, two GPUs of 24 GB would make the context four times as long, and the model not fit again.
    wanted = on(host(24), model("deepseek-r1:32b", num_ctx=None))
    changes = changes_for(wanted, wanted.models[0])
    assert "1 more GPU like 24 GB, with a context of 32768 tokens declared (num_ctx)" in changes


def test_a_host_without_gpus_is_told_what_it_needs() -> None:
    none = on(host(), model("deepseek-r1:7b"))
    [found] = plan("h", none).models
    assert found.verdict is Verdict.FITS_WITH and found.changes[0].startswith("1 x 8 GB in the host")
    assert found.reasons == ("there is no GPU for it",)
    assert verdicts(replace(none, server=Server(accelerator="cpu"))) == [Verdict.FITS]
    # A model that is to be on the CPU misses no GPU.
    assert verdicts(on(host(), model("deepseek-r1:7b", num_gpu=0))) == [Verdict.FITS]
    [short] = plan("h", on(host(ram=16), model("deepseek-r1:70b"), accelerator="cpu")).models
    assert "64 GiB of memory in the host" in short.changes and not any("GPU" in change for change in short.changes)


def test_where_all_is_too_small_another_host_is_proposed() -> None:
    tiny = on(host(4, ram=4), model("deepseek-r1:671b"))
    changes = changes_for(tiny, tiny.models[0])
    assert changes == ("4 x 141 GB (H200) in place of the GPUs, and 8 GiB of memory in the host",)
    assert verdicts(on(host(*[141] * 4, ram=8), *tiny.models)) == [Verdict.FITS]


def test_nothing_is_proposed_where_nothing_helps() -> None:
    endless = on(host(24), model("llama3.1:8b", num_gpu=33, num_batch=65536 * 64))
    [found] = plan("h", endless).models
    assert (found.verdict, found.changes) == (Verdict.DOES_NOT_FIT, ())


def test_resident_models_share_what_there_is() -> None:
    chat, embed = model("deepseek-r1:14b", resident=True), model("bge-m3", resident=True)
    assert verdicts(on(host(16), chat, embed)) == [Verdict.FITS, Verdict.FITS]
    second = model("llama3.1:8b", resident=True)
    found = plan("h", on(host(16), chat, second))
    assert [item.verdict for item in found.models] == [Verdict.FITS, Verdict.FITS_WITH]
    assert any("preload = False" in change for change in found.models[1].changes)
    # Not resident, they take turns; beside a resident one, room for it is what is left.
    turns = on(host(16), replace(chat, resident=False), replace(second, resident=False))
    assert verdicts(turns) == [Verdict.FITS, Verdict.FITS]
    beside = plan("h", on(host(16), replace(second, resident=False), chat))
    assert [(item.wanted.name, item.verdict) for item in beside.models] == [
        ("deepseek-r1:14b", Verdict.FITS),
        ("llama3.1:8b", Verdict.FITS_WITH),
    ]


def test_ollama_unloads_a_model_rather_than_fill_the_last_fifth() -> None:
    # 5.3 GiB are free beside the first model and 5.0 GiB are needed: enough, but Ollama wants a fifth left.
    models = [model("deepseek-r1:14b", resident=True), model("deepseek-r1:7b", resident=True)]
    found = plan("h", on(host(16), *models)).models[1]
    assert "more than 80 % of" in found.reasons[0] and "would unload one" in found.reasons[0]
    assert verdicts(on(host(24), *models)) == [Verdict.FITS, Verdict.FITS]


def test_no_more_models_are_kept_than_the_server_keeps() -> None:
    models = [model(name, resident=True) for name in ("llama3.2:1b", "bge-m3")]
    [_, second] = plan("h", on(host(24), *models, max_loaded_models=1)).models
    assert "would be loaded model number 2, and Ollama keeps 1" in second.reasons[0]
    assert second.changes[0] == "ollama.max_loaded_models = 2"
    four = [model(name, resident=True) for name in ("llama3.2:1b", "bge-m3", "gemma3:1b", "qwen2.5:0.5b")]
    assert verdicts(on(host(80), *four)).count(Verdict.FITS) == 3


def test_an_unknown_model_is_neither_planned_nor_an_obstacle() -> None:
    found = plan("h", on(host(24, disk=1), Wanted("mystery:7b", unknown="mystery:7b is not known"), model("bge-m3")))
    assert [item.verdict for item in found.models] == [Verdict.UNKNOWN, Verdict.FITS]
    assert not found.ok and [line for line in obstacles_in(found) if "mystery" in line] == []


def test_the_disk_keeps_its_reserve() -> None:
    wanted = on(host(80, disk=50), model("deepseek-r1:70b"))
    found = plan("h", replace(wanted, disk_reserve=20 * GIB))
    assert not found.ok and "9.6 GiB are missing" in found.disk_reasons[0]
    assert plan("h", replace(wanted, disk_reserve=10 * GIB)).ok
    [line] = obstacles_in(found)
    assert "disk_reserve_gib" in line
    # What is on the disk needs no more of it, and what two models share is there once.
    shared = ("library/deepseek-r1/70b",)
    there = on(host(80, disk=1, installed=frozenset(shared)), replace(wanted.models[0], files=shared))
    assert plan("h", there).disk_needed == 0 and plan("h", there).ok
    twice = on(host(80, disk=60), *(replace(model("deepseek-r1:70b"), name=name, files=shared) for name in "ab"))
    assert plan("h", twice).disk_needed == find("deepseek-r1:70b").weights.file


def test_the_line_for_a_deploy_has_reason_and_cure() -> None:
    [line] = obstacles_in(plan("h", on(host(24), model("deepseek-r1:32b", num_ctx=24576))))
    assert line.startswith("deepseek-r1:32b: ") and "layers" in line
    assert line.endswith("; it fits with ollama.flash_attention = True with kv_cache_type = q8_0")


def test_declared_hardware_is_checked() -> None:
    with pytest.raises(ValidationError, match="does not tell the card's memory"):
        DeclaredHardware.model_validate({"gpus": [{"card": "RTX 4090"}], "ram_gib": 64})
    hardware = DeclaredHardware.model_validate(
        {"gpus": [{"card": "A100 SXM4 80GB", "count": 2}, {"card": "L4", "memory_gib": 24}], "ram_gib": 256}
    )
    assert [device.memory_bytes // GIB for device in declared(hardware).devices] == [80, 80, 24]
    assert len(declared(hardware, count=2).devices) == 2
    assert [device.name for device in declared(hardware, ids=("2", "0")).devices] == ["L4", "A100 SXM4 80GB"]
    with pytest.raises(HardwareError, match="gpu_count is 4, and 3 GPUs are declared"):
        declared(hardware, count=4)
    with pytest.raises(HardwareError, match="gpu_device_ids names GPU-1"):
        declared(hardware, ids=("GPU-1",))


RTX = Card(address="0000:41:00.0", device_id="2684", name="GeForce RTX 4090", architecture=Architecture.ADA)
A100 = Card(address="0000:42:00.0", device_id="20b2", name="A100 SXM4 80GB", memory_gib=80)


def test_gpus_are_read_from_the_driver_or_their_names() -> None:
    gpu = Gpu(
        index=0,
        uuid="GPU-1",
        name="NVIDIA GeForce RTX 4090",
        memory_total_bytes=24 * GIB,
        processes=(
            GpuProcess(pid=1, name="/usr/bin/ollama", memory_bytes=20 * GIB),
            GpuProcess(pid=2, name="/usr/bin/Xorg", memory_bytes=GIB),
        ),
    )
    divided = Gpu(
        index=1,
        name="A100",
        mig_enabled=True,
        memory_total_bytes=40 * GIB,
        mig=(MigInstance(profile="3g.20gb", uuid="MIG-1", memory_bytes=20 * GIB),),
    )
    nvml = NvmlReport(source="nvml", gpus=(gpu, divided))
    [whole] = found(PciInventory(cards=(RTX, A100)), nvml, count="all", ids=())
    # What Ollama itself holds is there for models; what others hold is not.
    assert (whole.memory_bytes, whole.taken_bytes) == (24 * GIB, GIB)
    assert usable(whole, 1024 * MIB) == 24 * GIB - int(24 * GIB * 0.0125) - GIB - GIB
    [part] = found(PciInventory(), nvml, count="all", ids=("1:0",))
    assert part.memory_bytes == 20 * GIB and found(PciInventory(), nvml, count="all", ids=("MIG-1",)) == (part,)
    [by_name] = found(PciInventory(cards=(A100,)), NvmlReport(), count="all", ids=())
    assert by_name.memory_bytes == 80 * GIB
    with pytest.raises(HardwareError, match=r"memory of GeForce RTX 4090 .*capacity\.hardware"):
        found(PciInventory(cards=(RTX,)), NvmlReport(), count="all", ids=())
    with pytest.raises(HardwareError, match="GPU 0 does not answer: GPU is lost"):
        lost = NvmlReport(source="nvml", gpus=(Gpu(index=0, error="GPU is lost"),))
        found(PciInventory(cards=(RTX,)), lost, count="all", ids=())
    with pytest.raises(HardwareError, match="does not tell the memory of GPU 0"):
        found(PciInventory(), NvmlReport(source="nvml", gpus=(Gpu(index=0),)), count="all", ids=())
    with pytest.raises(HardwareError, match="cannot be told apart"):
        found(PciInventory(cards=(A100,)), NvmlReport(), count="all", ids=("GPU-1",))


def test_the_hosts_room_is_read() -> None:
    lines = ["ram 65843212", "disk 1000000000", "model registry.ollama.ai/library/DeepSeek-R1/7b", "odd", "disk x"]
    room = ModelRoom().process(lines)
    assert room == Room(
        ram_bytes=65843212 * 1024,
        disk_bytes=1_000_000_000,
        models=frozenset({"registry.ollama.ai/library/deepseek-r1/7b"}),
    )
    server = OllamaSettings(accelerator="cpu")
    assert read_hardware(server, room, PciInventory(cards=(RTX,)), NvmlReport()).devices == ()


def test_settings_become_a_situation() -> None:
    models = OllamaModelsSettings.model_validate(
        {
            "models": {
                "deepseek-r1:7b": {"preload": True, "parameters": {"num_ctx": 16384}},
                "helpdesk": {"base": "deepseek-r1:7b", "system": "Be brief."},
                "old:1b": {"state": "absent"},
                "own": {"gguf": "no/such.gguf"},
                "raw": {"safetensors": "models/raw"},
                "other:3b": {},
            },
            "disk_reserve_gib": 20,
            "enabled": False,  # or the missing file would be refused at once
        }
    )
    capacity = CapacitySettings.model_validate({"hardware": {"gpus": [{"card": "L4 24GB"}], "ram_gib": 64}})
    server = OllamaSettings(num_parallel=2, kv_cache_type="q8_0", flash_attention=True)
    hardware = declared_hardware(capacity, server)
    assert hardware
    made = situation(models, server, capacity, hardware)
    by_name = {wanted.name: wanted for wanted in made.models}
    assert list(by_name) == ["deepseek-r1:7b", "helpdesk:latest", "own:latest", "raw:latest", "other:3b"]
    assert by_name["deepseek-r1:7b"].resident and by_name["deepseek-r1:7b"].num_ctx == 16384
    assert by_name["helpdesk:latest"].profile and not by_name["helpdesk:latest"].resident
    assert by_name["helpdesk:latest"].files[0] == by_name["deepseek-r1:7b"].files[0]
    assert by_name["own:latest"].unknown == "no/such.gguf: No such file or directory"
    assert "convert_hf_to_gguf.py" in by_name["raw:latest"].unknown
    assert "not in gpurack's catalogue" in by_name["other:3b"].unknown
    assert made.disk_reserve == 20 * GIB and made.server.cache_type == "q8_0"
    forever = situation(models, OllamaSettings(keep_alive="forever"), capacity, hardware)
    assert all(wanted.resident for wanted in forever.models)
    assert declared_hardware(CapacitySettings(), server) is None


@pytest.mark.parametrize(
    ("people", "sizes"),
    [(1, ("1.5b", "7b")), (9, ("1.5b", "7b")), (10, ("14b", "32b")), (100, ("14b", "32b")), (101, ("70b", "671b"))],
)
def test_the_rule_for_people_is_the_sources(people: int, sizes: tuple[str, ...]) -> None:
    assert band(people) == sizes


@pytest.mark.parametrize(
    ("gpus", "people", "name", "words"),
    [
        ([8], 5, "deepseek-r1:7b", "and this fits"),
        ([80], 5, "deepseek-r1:7b", "and this fits"),
        ([24], 40, "deepseek-r1:14b", "and this fits"),
        ([80], 60, "deepseek-r1:32b", "and this fits"),
        ([80] * 4, 200, "deepseek-r1:70b", "and this fits"),
        ([8], 40, "deepseek-r1:7b", "nothing larger fits; 14b fits with "),
        ([4], 1000, None, "no size fits; 70b fits with "),
    ],
)
def test_a_model_is_recommended(gpus: list[int], people: int, name: str | None, words: str) -> None:
    found = recommend(on(host(*gpus, ram=1024)), people)
    assert found.name == name and words in found.note and found.parallel == -(-people // 10)
    if found.name:
        wanted = model(found.name, num_ctx=found.context, resident=True)
        assert verdicts(on(host(*gpus, ram=1024), wanted, num_parallel=found.parallel)) == [Verdict.FITS]


def test_a_recommendation_for_a_cpu_says_so() -> None:
    found = recommend(on(host(ram=32), accelerator="cpu"), 5)
    assert found.name == "deepseek-r1:7b" and "computed by the CPU" in found.note


def test_own_figures_stand_beside_the_sources() -> None:
    rows = {row.size: row for row in comparison()}
    assert rows["7b"].source_memory.startswith("14 GB") and rows["7b"].half / GIB == pytest.approx(14, abs=0.5)
    assert rows["70b"].half / 1e9 == pytest.approx(140, rel=0.02)
    assert 40 < rows["70b"].four_bit / GIB < 50
    assert rows["671b"].half / 1e12 == pytest.approx(1.3, rel=0.05)
