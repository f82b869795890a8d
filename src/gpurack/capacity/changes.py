"""What would make a model fit, cheapest first: settings that cost nothing, then quality, then speed, then money."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from gpurack.capacity.catalogue import UnknownModelError, find
from gpurack.capacity.hardware import Device
from gpurack.capacity.memory import CONTEXT_STEP, GIB
from gpurack.capacity.plan import ModelPlan, Situation, Verdict, Wanted, evaluate

SHORTEST_CONTEXT = 4096
"""No context below this is proposed: Ollama's own default on small cards, and little for documents."""

MOST_CARDS = 16
"""No more cards in one host are proposed."""

CARDS: tuple[tuple[str, int], ...] = (
    ("8 GB", 8),
    ("12 GB", 12),
    ("16 GB", 16),
    ("24 GB (RTX 4090, RTX 3090, L4, A10)", 24),
    ("32 GB (RTX 5090)", 32),
    ("48 GB (L40S, RTX A6000, RTX 6000 Ada)", 48),
    ("80 GB (A100, H100)", 80),
    ("96 GB (RTX PRO 6000)", 96),
    ("141 GB (H200)", 141),
)
"""Memory that cards are made with, in GiB, and cards that have it."""


@dataclass(frozen=True)
class Change:
    """Something that may be changed: what it is called, and the situation it makes."""

    text: str
    situation: Situation


Maker = Callable[[Situation, Wanted], Iterator[Change]]


def changes_for(situation: Situation, wanted: Wanted) -> tuple[str, ...]:
    """Return what would make a model fit without another that fits no longer doing so, cheapest first.

    Each kind of change is tried alone, in the order of :data:`KINDS`, with the smallest step that is enough; where no
    setting is enough alone, settings are added up.
    """
    fitting = {plan.wanted.name for plan in evaluate(situation) if plan.verdict is Verdict.FITS}

    def enough(changed: Situation) -> bool:
        plans = {plan.wanted.name: plan for plan in evaluate(changed)}
        return _fits(plans, wanted.name) and all(_fits(plans, name) for name in fitting)

    texts: list[str] = []
    for kind in KINDS:
        if change := next((change for change in kind(situation, wanted) if enough(change.situation)), None):
            texts.append(change.text)
    if not texts:
        change = next((change for change in _new_host(situation, wanted) if enough(change.situation)), None)
        texts = [change.text] if change else []
    together = _together(situation, wanted, enough)
    if together and not any(_is_setting(situation, wanted, enough)):
        texts.insert(0, together)
    return tuple(texts)


def _fits(plans: dict[str, ModelPlan], name: str) -> bool:
    # A model that was exchanged for a smaller one has another name, and is judged by whoever made the change.
    return name not in plans or plans[name].verdict is Verdict.FITS


def _is_setting(situation: Situation, wanted: Wanted, enough: Callable[[Situation], bool]) -> Iterator[bool]:
    for kind in SETTINGS:
        yield any(enough(change.situation) for change in kind(situation, wanted))


def _together(situation: Situation, wanted: Wanted, enough: Callable[[Situation], bool]) -> str:
    """Return settings that are enough together, or nothing."""
    texts: list[str] = []
    current = situation
    for kind in SETTINGS:
        last = None
        for change in kind(current, wanted):
            last = change
            if enough(change.situation):
                return " and ".join([*texts, change.text])
        if last:
            texts.append(last.text)
            current = last.situation
    return ""


def _exchanged(situation: Situation, wanted: Wanted, new: Wanted) -> Situation:
    models = tuple(new if model.name == wanted.name else model for model in situation.models)
    return replace(situation, models=models)


def _wanted_in(situation: Situation, wanted: Wanted) -> Wanted:
    return next(model for model in situation.models if model.name == wanted.name)


def _quantised_cache(situation: Situation, wanted: Wanted) -> Iterator[Change]:
    del wanted
    if situation.server.cache_type == "f16" and all(device.flash_attention for device in situation.hardware.devices):
        server = replace(situation.server, cache_type="q8_0", flash_attention=True)
        yield Change("ollama.flash_attention = True with kv_cache_type = q8_0", replace(situation, server=server))


def _flash_attention(situation: Situation, wanted: Wanted) -> Iterator[Change]:
    del wanted
    if situation.server.flash_attention is False and all(
        device.flash_attention for device in situation.hardware.devices
    ):
        server = replace(situation.server, flash_attention=True)
        yield Change("ollama.flash_attention = True", replace(situation, server=server))


def _less_parallel(situation: Situation, wanted: Wanted) -> Iterator[Change]:
    del wanted
    for parallel in range(situation.server.num_parallel - 1, 0, -1):
        server = replace(situation.server, num_parallel=parallel)
        yield Change(f"ollama.num_parallel = {parallel}", replace(situation, server=server))


def _less_context(situation: Situation, wanted: Wanted) -> Iterator[Change]:
    """Yield shorter contexts, from long to short, in steps of a sixteenth of what there is."""
    model = _wanted_in(situation, wanted)
    if model.profile is None or model.profile.architecture.embeds:
        return
    now = min(situation.context_of(model), model.profile.architecture.context_length)
    step = max(CONTEXT_STEP, now // 16 // CONTEXT_STEP * CONTEXT_STEP)
    lengths = range((now - 1) // step * step, SHORTEST_CONTEXT, -step)
    for context in (*lengths, *([SHORTEST_CONTEXT] if now > SHORTEST_CONTEXT else ())):
        yield Change(
            f"a context of {context} tokens (num_ctx)", _exchanged(situation, model, replace(model, num_ctx=context))
        )


def _small_cache(situation: Situation, wanted: Wanted) -> Iterator[Change]:
    del wanted
    if situation.server.cache_type in {"f16", "q8_0"} and all(
        device.flash_attention for device in situation.hardware.devices
    ):
        server = replace(situation.server, cache_type="q4_0", flash_attention=True)
        yield Change("ollama.kv_cache_type = q4_0 (answers may suffer)", replace(situation, server=server))


def _smaller(situation: Situation, wanted: Wanted) -> Iterator[Change]:
    yield from _other_models(situation, wanted, wanted.profile.smaller if wanted.profile else (), "the quantisation")


def _lesser(situation: Situation, wanted: Wanted) -> Iterator[Change]:
    yield from _other_models(situation, wanted, wanted.profile.lesser if wanted.profile else (), "the model")


def _other_models(situation: Situation, wanted: Wanted, names: tuple[str, ...], what: str) -> Iterator[Change]:
    for name in names:
        try:
            other = replace(wanted, profile=find(name))
        except UnknownModelError:  # pragma: no cover - names are the catalogue's own
            continue
        if other.profile and wanted.profile and other.profile.weights.file < wanted.profile.weights.file:
            yield Change(f"{what} {name} in its place", _exchanged(situation, wanted, other))


def _not_resident(situation: Situation, wanted: Wanted) -> Iterator[Change]:
    if wanted.resident:
        yield Change(
            "preload = False: it is then loaded when asked for",
            _exchanged(situation, wanted, replace(wanted, resident=False)),
        )
    residents = [model for model in situation.models if model.resident and model.name != wanted.name]
    for model in residents if not wanted.resident else ():
        yield Change(
            f"preload = False for {model.name}, which then takes turns with it",
            _exchanged(situation, model, replace(model, resident=False)),
        )
    if residents:
        models = tuple(replace(model, resident=False) for model in situation.models)
        names = ", ".join(model.name for model in residents)
        yield Change(
            f"preload = False for it and {names}: they then take turns, each loaded when asked for",
            replace(situation, models=models),
        )


def _more_loaded(situation: Situation, wanted: Wanted) -> Iterator[Change]:
    del wanted
    for most in range(2, len(situation.models) + 1):
        server = replace(situation.server, max_loaded_models=most)
        yield Change(f"ollama.max_loaded_models = {most}", replace(situation, server=server))


def _offload(situation: Situation, wanted: Wanted) -> Iterator[Change]:
    del wanted
    if situation.on_gpu and situation.hardware.devices and not situation.cpu_offload:
        yield Change(
            "capacity.cpu_offload = True: what does not fit the GPUs is computed by the CPU, several times slower",
            replace(situation, cpu_offload=True),
        )


def _more_gpus(situation: Situation, wanted: Wanted) -> Iterator[Change]:
    """Yield more of the last card there is."""
    kept = _context_kept(situation, wanted)
    devices = situation.hardware.devices
    if situation.on_gpu and devices:
        for number in range(1, MOST_CARDS - len(devices) + 1):
            more = _with_devices(situation, (*devices, *([devices[-1]] * number)))
            yield Change(f"{number} more GPU{'s' if number > 1 else ''} like {devices[-1].name}{kept}", more)


def _other_gpus(situation: Situation, wanted: Wanted) -> Iterator[Change]:
    """Yield GPUs of the memory that cards are made with: fewest GPUs first, then the smallest."""
    kept = _context_kept(situation, wanted)
    if not situation.on_gpu:
        return
    now = sum(device.memory_bytes for device in situation.hardware.devices)
    for number in (1, 2, 4, 8, 16):
        for name, memory in CARDS:
            if number * memory * GIB > now:
                device = Device(name=name, memory_bytes=memory * GIB)
                text = f"{number} x {name} {'in place of the GPUs' if now else 'in the host'}{kept}"
                yield Change(text, _with_devices(situation, (device,) * number))


def _with_devices(situation: Situation, devices: tuple[Device, ...]) -> Situation:
    """Return the situation with other GPUs, and the contexts that models have now.

    With more memory Ollama would make an undeclared context longer, and what is bought would be gone again.
    """
    models = tuple(replace(model, num_ctx=situation.context_of(model)) for model in situation.models)
    hardware = situation.hardware.model_copy(update={"devices": devices})
    return replace(situation, hardware=hardware, models=models)


def _context_kept(situation: Situation, wanted: Wanted) -> str:
    """Return what is to be declared beside more GPUs, so that the context stays as it is."""
    if wanted.num_ctx or situation.server.context_length:
        return ""
    return f", with a context of {situation.context_of(wanted)} tokens declared (num_ctx)"


def _more_ram(situation: Situation, wanted: Wanted) -> Iterator[Change]:
    del wanted
    for memory in (8, 16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048):
        if memory * GIB > situation.hardware.ram_bytes:
            hardware = situation.hardware.model_copy(update={"ram_bytes": memory * GIB})
            yield Change(f"{memory} GiB of memory in the host", replace(situation, hardware=hardware))


def _new_host(situation: Situation, wanted: Wanted) -> Iterator[Change]:
    """Yield other GPUs with more memory in the host, for where both are too small."""
    for memory in _more_ram(situation, wanted):
        for gpus in _other_gpus(memory.situation, wanted):
            yield Change(f"{gpus.text}, and {memory.text}", gpus.situation)


SETTINGS: tuple[Maker, ...] = (_flash_attention, _quantised_cache, _less_parallel, _less_context, _small_cache)
"""Settings that may be added up."""

KINDS: tuple[Maker, ...] = (
    _more_loaded,
    *SETTINGS,
    _smaller,
    _not_resident,
    _offload,
    _lesser,
    _more_ram,
    _more_gpus,
    _other_gpus,
)
"""Kinds of change, cheapest first."""
