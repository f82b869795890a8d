"""A model for so many people on some hardware, and planning figures of others beside our own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from gpurack.capacity.catalogue import find
from gpurack.capacity.memory import GPU_CONTEXT, load, running
from gpurack.capacity.plan import ModelPlan, Situation, Verdict, Wanted, evaluate, plan

FAMILY = "deepseek-r1"
SIZES = ("1.5b", "7b", "8b", "14b", "32b", "70b", "671b")

BANDS: tuple[tuple[int, tuple[str, ...]], ...] = (
    (9, ("1.5b", "7b")),
    (100, ("14b", "32b")),
    (0, ("70b", "671b")),
)
"""Sources' rule: most people -> sizes; fewer than 10: 1.5B or 7B, 10 to 100: 14B or 32B, more: 70B or 671B."""

ASKING_SHARE = 10
"""One of so many people waits for an answer at the same moment. Our own planning rule, not measured; what a site sees
in its gateway's log replaces it, with ollama.num_parallel."""

CONTEXT = 8192
"""Tokens for each request in a recommendation: a question, some pages of documents, and a reasoning answer."""

PLANNING: tuple[tuple[str, str, str], ...] = (
    ("1.5b", "3 GB", "GTX 1650"),
    ("7b", "14 GB (fp16; 4-bit: 8 GB)", "RTX 3070"),
    ("14b", "32 GB", "RTX 4090"),
    ("32b", "64 GB (4-bit: 24 GB)", "A100 40 GB"),
    ("70b", "140 GB (4-bit: 40 to 50 GB)", "4x RTX 4090"),
    ("671b", "512 GB", "8x A100/H100 80 GB"),
)
"""The sources' planning table: size, least memory of GPUs, card."""


@dataclass(frozen=True)
class Recommendation:
    """A model for a number of people.

    Attributes:
        people: how many.
        parallel: requests at once.
        context: tokens of each.
        name: the model; None when none fits.
        note: why this one, and what the next better would need.
    """

    people: int
    parallel: int
    context: int
    name: str | None
    note: str


def band(people: int) -> tuple[str, ...]:
    """Return the sizes the sources' rule gives for a number of people, smaller first."""
    return next(sizes for most, sizes in BANDS if not most or people <= most)


def recommend(situation: Situation, people: int) -> Recommendation:
    """Return the largest DeepSeek-R1 that fits with a request at once for every tenth person.

    Larger sizes than the rule's band are not proposed: they would answer fewer people at the same time.
    """
    parallel = -(-people // ASKING_SHARE)
    # A host without GPUs computes on its CPU.
    accelerator = situation.server.accelerator if situation.hardware.devices else "cpu"
    server = replace(situation.server, num_parallel=parallel, accelerator=accelerator)
    fresh = replace(situation, server=server)

    def planned(size: str) -> ModelPlan:
        name = f"{FAMILY}:{size}"
        one = Wanted(name, find(name), num_ctx=CONTEXT, resident=True)
        return evaluate(replace(fresh, models=(one,)))[0]

    wanted = band(people)
    allowed = SIZES[: SIZES.index(wanted[-1]) + 1]
    best = next((size for size in reversed(allowed) if planned(size).verdict is Verdict.FITS), None)
    rule = f"the rule for {people} people is {' or '.join(wanted)}"
    if accelerator == "cpu":
        rule += "; it would be computed by the CPU, whose speed is not planned here"
    if best and (best in wanted or SIZES.index(best) > SIZES.index(wanted[0])):
        return Recommendation(people, parallel, CONTEXT, f"{FAMILY}:{best}", f"{rule}, and this fits")
    name = f"{FAMILY}:{wanted[0]}"
    needed = plan("", replace(fresh, models=(Wanted(name, find(name), num_ctx=CONTEXT, resident=True),))).models[0]
    cure = f"; {wanted[0]} fits with {needed.changes[0]}" if needed.changes else ""
    if best is None:
        return Recommendation(people, parallel, CONTEXT, None, f"{rule}, and no size fits{cure}")
    return Recommendation(people, parallel, CONTEXT, f"{FAMILY}:{best}", f"{rule}, and nothing larger fits{cure}")


@dataclass(frozen=True)
class Comparison:
    """Planning figures of one size.

    Attributes:
        size: such as ``7b``.
        source_memory: the sources' least memory of GPUs.
        source_card: the sources' card.
        four_bit: own bytes on one GPU, Ollama's usual quantisation, 4096 tokens, one request.
        half: own bytes with weights in F16.
    """

    size: str
    source_memory: str
    source_card: str
    four_bit: int
    half: int


def comparison() -> Iterator[Comparison]:
    """Yield the sources' planning table with own figures."""
    for size, memory, card in PLANNING:
        name = f"{FAMILY}:{size}"
        both = [needed_on_one_gpu(name, file_type) for file_type in (None, "F16")]
        yield Comparison(size, memory, card, both[0], both[1])


def needed_on_one_gpu(name: str, file_type: str | None = None, *, context: int = 4096, parallel: int = 1) -> int:
    """Return the bytes a model of the catalogue takes of one GPU; reserves are not counted."""
    profile = find(name, file_type=file_type)
    needed = load(profile, running(profile.architecture, context=context, parallel=parallel))
    return sum(needed.pieces) + needed.graph + GPU_CONTEXT
