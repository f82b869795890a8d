"""Where a model's layers go: to GPUs as far as they have room, the rest to the host's memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gpurack.capacity.memory import GPU_CONTEXT, Load

SINGLE_GPU_SHARE = 80
"""Percent of a GPU's free memory that a model may be predicted to need for Ollama to put it there alone, and of all
free memory for Ollama to load it beside others without unloading one (``server/sched.go``)."""


@dataclass(frozen=True)
class Placement:
    """Where a model is.

    Attributes:
        gpu_layers: pieces on each GPU: layers, and the output, which Ollama counts as one.
        gpu_bytes: bytes on each GPU, buffers and CUDA's context included.
        cpu_layers: pieces in the host's memory.
        ram_bytes: bytes in the host's memory.
    """

    gpu_layers: tuple[int, ...]
    gpu_bytes: tuple[int, ...]
    cpu_layers: int
    ram_bytes: int


def place(load: Load, free: Sequence[int], *, spread: bool = False, wanted: int | None = None) -> Placement:
    """Return where a model's pieces go.

    On one GPU alone where Ollama does that; otherwise over all, shared by their free memory as llama.cpp does, and
    filled one after the other where such a share does not fit. What is left over are the first layers, as ``-ngl``
    counts from the last.

    Args:
        load: the model.
        free: bytes free on each GPU.
        spread: whether one GPU alone is not to be tried.
        wanted: pieces that are to be on GPUs at most, as ``num_gpu``; None for as many as fit.
    """
    most = len(load.pieces) if wanted is None else min(wanted, len(load.pieces))
    if not most or not free:
        return _made(load, [0] * len(free))
    best = max(range(len(free)), key=lambda index: (free[index], -index))
    if not spread and load.predicted * 100 <= free[best] * SINGLE_GPU_SHARE:
        alone = [free[index] if index == best else 0 for index in range(len(free))]
        counts = _filled(load, alone, most)
        if sum(counts) == most:
            return _made(load, counts)
    counts = _filled(load, free, most)
    if sum(counts) == most == len(load.pieces) and (shared := _shared(load, free)):
        counts = shared
    return _made(load, counts)


def _filled(load: Load, free: Sequence[int], most: int) -> list[int]:
    """Return how many pieces each GPU takes when they are filled in turn, from the last piece on."""
    counts, at, end = [], len(load.pieces), len(load.pieces) - most
    for room in free:
        left, count = room - GPU_CONTEXT - load.graph, 0
        while at > end and load.pieces[at - 1] <= left:
            at -= 1
            count += 1
            left -= load.pieces[at]
        counts.append(count)
    return counts


def _shared(load: Load, free: Sequence[int]) -> list[int] | None:
    """Return pieces by the GPUs' share of the free memory, as llama.cpp splits layers; None where that does not fit."""
    total, number = sum(free), len(load.pieces)
    bounds, reached = [], 0
    for room in free:
        reached += room
        bounds.append(round(number * reached / total))
    counts = [bound - before for bound, before in zip(bounds, [0, *bounds], strict=False)]
    made = _made(load, counts)
    return counts if all(taken <= room for taken, room in zip(made.gpu_bytes, free, strict=True)) else None


def _made(load: Load, counts: Sequence[int]) -> Placement:
    """Return the placement of so many pieces on each GPU, counted from the last piece."""
    at, taken = len(load.pieces), []
    for count in counts:
        pieces = sum(load.pieces[at - count : at])
        taken.append(pieces + GPU_CONTEXT + load.graph if count else 0)
        at -= count
    weights = load.profile.weights
    ram = weights.input + sum(load.pieces[:at])
    if at == len(load.pieces) and load.profile.architecture.tied:
        ram -= weights.input  # the output is the embedding itself: it is there a second time only on a GPU
    if at:
        ram += load.graph
    return Placement(tuple(counts), tuple(taken), at, ram)
