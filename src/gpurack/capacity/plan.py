"""The plan of a host: each model's memory, where it goes, and whether it fits."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Literal

from gpurack.capacity.catalogue import Profile
from gpurack.capacity.hardware import Hardware, usable
from gpurack.capacity.memory import GIB, MIB, Load, load, running
from gpurack.capacity.placement import SINGLE_GPU_SHARE, Placement, place

MODELS_PER_GPU = 3
"""Models that Ollama keeps loaded for each GPU, or on a CPU (``defaultModelsPerGPU`` in ``server/sched.go``)."""

DEFAULT_CONTEXTS = ((47 * GIB, 262144), (23 * GIB, 32768), (0, 4096))
"""Memory of all GPUs together -> context where none is declared (``server/routes.go``)."""


class Verdict(StrEnum):
    """Whether a model fits."""

    FITS = "fits"
    FITS_WITH = "fits with a change"
    DOES_NOT_FIT = "does not fit"
    UNKNOWN = "not known"


@dataclass(frozen=True)
class Server:
    """How Ollama is set up, as far as memory depends on it; names as in the ollama role's settings."""

    accelerator: Literal["nvidia", "cpu"] = "nvidia"
    num_parallel: int = 1
    context_length: int | None = None
    cache_type: str = "f16"
    flash_attention: bool | None = None
    max_loaded_models: int | None = None
    spread: bool = False


@dataclass(frozen=True)
class Wanted:
    """A model that a host is to have.

    Attributes:
        name: as declared.
        profile: what is known of it; None when nothing is.
        unknown: why nothing is known.
        files: keys under which its weights may be on the disk; the first is the same for models that share them.
        num_ctx: its context, where it has one of its own.
        num_gpu: layers on GPUs, where declared; -1 and None for as many as fit.
        num_batch: tokens of a prompt at once, where declared.
        resident: whether it is preloaded and kept, so that it is there whatever else is loaded.
    """

    name: str
    profile: Profile | None = None
    unknown: str = ""
    files: tuple[str, ...] = ()
    num_ctx: int | None = None
    num_gpu: int | None = None
    num_batch: int | None = None
    resident: bool = False


@dataclass(frozen=True)
class Situation:
    """Everything a plan depends on.

    Attributes:
        hardware: what is there.
        server: how Ollama is set up.
        models: what the host is to have.
        cpu_offload: whether layers may be in the host's memory although there is a GPU.
        gpu_reserve: bytes left free on each GPU.
        ram_reserve: bytes of the host's memory for everything else.
        disk_reserve: bytes left free on the models' disk.
    """

    hardware: Hardware
    server: Server = field(default_factory=Server)
    models: tuple[Wanted, ...] = ()
    cpu_offload: bool = False
    gpu_reserve: int = 1024 * MIB
    ram_reserve: int = 4 * GIB
    disk_reserve: int = 10 * GIB

    @property
    def on_gpu(self) -> bool:
        """Whether models are to be on GPUs."""
        return self.server.accelerator == "nvidia"

    def context_of(self, wanted: Wanted) -> int:
        """Return the context a model gets, before its own limit."""
        total = sum(device.memory_bytes for device in self.hardware.devices) if self.on_gpu else 0
        default = next(tokens for least, tokens in DEFAULT_CONTEXTS if total >= least)
        return wanted.num_ctx or self.server.context_length or default

    def load_of(self, wanted: Wanted, profile: Profile) -> Load:
        """Return a model's memory."""
        flash = self.server.flash_attention
        if flash is None:
            flash = not self.on_gpu or all(device.flash_attention for device in self.hardware.devices)
        run = running(
            profile.architecture,
            context=self.context_of(wanted),
            parallel=self.server.num_parallel,
            cache_type=self.server.cache_type,
            flash_attention=flash,
            batch=wanted.num_batch,
        )
        return load(profile, run)


@dataclass(frozen=True)
class ModelPlan:
    """A model on a host.

    Attributes:
        wanted: what is declared.
        verdict: whether it fits.
        load: its memory; None when it is not known.
        placement: where it goes.
        reasons: why it does not fit.
        changes: what would make it fit, cheapest first.
    """

    wanted: Wanted
    verdict: Verdict
    load: Load | None = None
    placement: Placement | None = None
    reasons: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()


@dataclass(frozen=True)
class HostPlan:
    """All models of a host.

    Attributes:
        host: its name.
        situation: what the plan depends on.
        models: the models, resident ones first.
        disk_needed: bytes to be downloaded or copied.
        disk_reasons: why the disk is too small.
    """

    host: str
    situation: Situation
    models: tuple[ModelPlan, ...]
    disk_needed: int
    disk_reasons: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether everything fits."""
        return not self.disk_reasons and all(plan.verdict is Verdict.FITS for plan in self.models)


def evaluate(situation: Situation) -> tuple[ModelPlan, ...]:
    """Return each model's plan, without changes: resident models together, each other one beside them.

    A model that is not resident is loaded when somebody asks for it, in place of another that is not.
    """
    free = [usable(device, situation.gpu_reserve) for device in situation.hardware.devices]
    if not situation.on_gpu:
        free = []
    ram = max(0, situation.hardware.ram_bytes - situation.ram_reserve)
    plans, residents = [], 0
    for wanted in sorted(situation.models, key=lambda model: not model.resident):
        if wanted.profile is None:
            plans.append(ModelPlan(wanted, Verdict.UNKNOWN, reasons=(wanted.unknown,)))
            continue
        plan = _one(situation, wanted, wanted.profile, free, ram, residents)
        plans.append(plan)
        if wanted.resident and plan.placement:
            residents += 1
            free = [max(0, room - taken) for room, taken in zip(free, plan.placement.gpu_bytes, strict=True)]
            ram = max(0, ram - plan.placement.ram_bytes)
    return tuple(plans)


def _one(
    situation: Situation, wanted: Wanted, profile: Profile, free: list[int], ram: int, residents: int
) -> ModelPlan:
    load = situation.load_of(wanted, profile)
    layers = None if wanted.num_gpu is None or wanted.num_gpu < 0 else wanted.num_gpu
    placement = place(load, free, spread=situation.server.spread, wanted=layers)
    reasons = []
    if situation.on_gpu and not free and layers != 0:
        reasons.append("there is no GPU for it")
    # Where num_gpu is declared, what it leaves to the CPU is meant to be there.
    meant = 0 if layers is None else max(0, len(load.pieces) - layers)
    if free and placement.cpu_layers > meant and not situation.cpu_offload:
        short = sum(load.pieces[: placement.cpu_layers]) if sum(placement.gpu_layers) else sum(load.pieces)
        reasons.append(
            f"{placement.cpu_layers} of {len(load.pieces)} layers ({gib(short)}) do not fit the GPUs, where "
            f"{gib(sum(free))} are free, and would be computed by the CPU"
        )
    if placement.ram_bytes > ram:
        reasons.append(f"needs {gib(placement.ram_bytes)} of the host's memory, and {gib(ram)} are free for models")
    most = situation.server.max_loaded_models or MODELS_PER_GPU * max(1, len(free))
    if residents + 1 > most:
        reasons.append(
            f"would be loaded model number {residents + 1}, and Ollama keeps {most}: it would unload another"
        )
    elif residents and free and load.predicted * 100 > sum(free) * SINGLE_GPU_SHARE:
        reasons.append(
            f"Ollama predicts {gib(load.predicted)} for it, more than {SINGLE_GPU_SHARE} % of the {gib(sum(free))} "
            "that resident models leave free: it would unload one of them"
        )
    verdict = Verdict.DOES_NOT_FIT if reasons else Verdict.FITS
    return ModelPlan(wanted, verdict, load, placement, tuple(reasons))


def disk_of(situation: Situation) -> tuple[int, tuple[str, ...]]:
    """Return the bytes that are still to come to the disk, and why they do not fit it."""
    files = {
        (wanted.files or (wanted.name,))[0]: wanted.profile.weights.file
        for wanted in situation.models
        if wanted.profile and not situation.hardware.installed.intersection(wanted.files)
    }
    needed, free = sum(files.values()), situation.hardware.disk_bytes
    if free is None or needed + situation.disk_reserve <= free or not needed:
        return needed, ()
    return needed, (
        f"models of {gib(needed)} are to come, {gib(free)} of disk are free, and {gib(situation.disk_reserve)} "
        f"(ollama_models.disk_reserve_gib) stay free: {gib(needed + situation.disk_reserve - free)} are missing; "
        "declare fewer models, or give ollama.models_dir a larger disk",
    )


def plan(host: str, situation: Situation) -> HostPlan:
    """Return the plan of a host, with the changes that would make a model fit."""
    from gpurack.capacity.changes import changes_for

    models = []
    for found in evaluate(situation):
        if found.verdict is Verdict.DOES_NOT_FIT and (changes := changes_for(situation, found.wanted)):
            models.append(replace(found, verdict=Verdict.FITS_WITH, changes=changes))
        else:
            models.append(found)
    needed, reasons = disk_of(situation)
    return HostPlan(host, situation, tuple(models), needed, reasons)


def gib(number: int) -> str:
    """Return bytes for people, in GiB, rounded up to a tenth where it is needed."""
    return f"{number / GIB:.1f} GiB" if number >= 0.95 * GIB else f"{number / MIB:.0f} MiB"
