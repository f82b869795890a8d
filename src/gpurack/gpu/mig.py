"""MIG: which profiles a GPU has, where they fit, and what ``nvidia-smi mig`` says of them.

A GPU is divided along memory slices (8 on A100 and later, 4 on A30 and RTX PRO 6000) and compute slices (7 and 4). A
profile takes some of both and may start only at some memory slices: a ``3g`` at slice 0 or 4, a ``4g`` at 0 alone.
Which order instances are made in then decides whether the last one fits, so places are chosen here and named.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

PROFILE_NAME = r"^[1-9]\d*g\.\d+gb([+-][a-z0-9.]+)*$"


class MigError(ValueError):
    """A layout cannot be had; the message says why, and what can."""


@dataclass(frozen=True)
class Profile:
    """A kind of GPU instance.

    Attributes:
        name: as in ``3g.20gb``: compute slices and memory.
        starts: memory slices it may start at.
        size: memory slices it takes.
        most: how many there may be at once, where fewer than fit.
    """

    name: str
    starts: tuple[int, ...]
    size: int
    most: int | None = None

    @property
    def compute(self) -> int:
        """Compute slices it takes."""
        return int(self.name.partition("g")[0])


@dataclass(frozen=True, order=True)
class Placement:
    """An instance of a profile at a memory slice; as text it is what ``nvidia-smi mig -cgi`` takes."""

    start: int
    profile: str

    def __str__(self) -> str:
        return f"{self.profile}:{self.start}"


@dataclass(frozen=True)
class Family:
    """Cards that are divided alike.

    Attributes:
        name: what they are called in messages.
        devices: PCI device ids.
        memory: GB in the names of their profiles, see :data:`SEVENTHS` and :data:`QUARTERS`.
    """

    name: str
    devices: frozenset[str]
    memory: tuple[int, ...]


SEVENTHS = (
    ("1g.{0}gb", (0, 1, 2, 3, 4, 5, 6), 1, None),
    ("1g.{0}gb+me", (0, 1, 2, 3, 4, 5, 6), 1, 1),
    ("1g.{1}gb", (0, 2, 4, 6), 2, None),
    ("2g.{2}gb", (0, 2, 4), 2, None),
    ("3g.{3}gb", (0, 4), 4, None),
    ("4g.{4}gb", (0,), 4, None),
    ("7g.{5}gb", (0,), 8, None),
)
"""Profiles of cards with 7 compute and 8 memory slices: name, starts, size, most."""

QUARTERS = (
    ("1g.{0}gb", (0, 1, 2, 3), 1, None),
    ("1g.{0}gb+me", (0, 1, 2, 3), 1, 1),
    ("2g.{1}gb", (0, 2), 2, None),
    ("2g.{1}gb+me", (0, 2), 2, 1),
    ("4g.{2}gb", (0,), 4, None),
)
"""Profiles of cards with 4 slices of each."""


def _family(name: str, devices: str, memory: str) -> Family:
    return Family(name, frozenset(devices.split()), tuple(int(number) for number in memory.split()))


# NVIDIA's MIG user guide, "Supported MIG Profiles" (placements: its figures of A100 and A30, the same for the cards
# after them); device ids of each: the configuration that NVIDIA/mig-parted ships. Cards that are not here are known
# once MIG is on, by what nvidia-smi says.
FAMILIES = (
    _family("A100 40 GB", "20b0 20b1 20bd 20f1 20f6", "5 10 10 20 20 40"),
    _family("A100, A800, H100 and H800 80 GB", "2330 2331 2322 2324 20b2 20b5 20f3 20f5", "10 20 20 40 40 80"),
    _family("H100 NVL 94 GB", "2321 233a", "12 24 24 47 47 94"),
    _family("H100, GH200 and H20 96 GB", "2338 2342 233d 20b6 2329", "12 24 24 48 48 96"),
    _family("H200 141 GB", "2335 233b", "18 35 35 71 71 141"),
    _family("GH200 144 GB", "2348", "18 36 36 72 72 144"),
    _family("B200", "2901", "23 45 45 90 90 180"),
    _family("A30", "20b7", "6 12 24"),
    _family("RTX PRO 6000 Blackwell", "2bb5", "24 48 96"),
)


def known_profiles(device_id: str) -> tuple[Profile, ...]:
    """Return the profiles of a card by its PCI device id, before a driver is there; empty for one not in the table."""
    for family in FAMILIES:
        if device_id in family.devices:
            table = SEVENTHS if len(family.memory) == 6 else QUARTERS
            return tuple(Profile(name.format(*family.memory), starts, size, most) for name, starts, size, most in table)
    return ()


def place(profiles: Sequence[Profile], wanted: Mapping[str, int]) -> tuple[Placement, ...]:
    """Return places for all wanted instances, by starting slice.

    Args:
        profiles: those the GPU has.
        wanted: how many of each, by name.

    Raises:
        MigError: a profile is not there, or they do not fit together.
    """
    by_name = {profile.name: profile for profile in profiles}
    if unknown := [name for name in wanted if name not in by_name]:
        raise MigError(f"there is no profile {', '.join(unknown)} on this GPU; it has {', '.join(sorted(by_name))}")
    for name, number in wanted.items():
        most = by_name[name].most
        if most is not None and number > most:
            raise MigError(f"{number} of {name}: there can be {most} at most")
    # The largest first: they have the fewest places.
    queue = sorted(
        (by_name[name] for name, number in wanted.items() for _ in range(number)),
        key=lambda profile: (-profile.size, len(profile.starts), profile.name),
    )
    compute = max(profile.compute for profile in profiles) if profiles else 0
    placed = _search(queue, frozenset())
    if placed is None or sum(profile.compute for profile in queue) > compute:
        text = ", ".join(f"{number} of {name}" for name, number in wanted.items())
        raise MigError(f"{text} do not fit on one GPU: {_slices(queue, profiles)}")
    return tuple(sorted(placed))


def _search(queue: Sequence[Profile], taken: frozenset[int]) -> list[Placement] | None:
    """Place the first of the queue wherever it fits, and the others after it; None if there is no way."""
    if not queue:
        return []
    first, rest = queue[0], queue[1:]
    # From the far end: small ones may go there, large ones mostly must start at 0.
    for start in reversed(first.starts):
        slices = frozenset(range(start, start + first.size))
        if slices & taken:
            continue
        found = _search(rest, taken | slices)
        if found is not None:
            return [Placement(start, first.name), *found]
    return None


def _slices(queue: Sequence[Profile], profiles: Sequence[Profile]) -> str:
    compute, memory = max(p.compute for p in profiles), max(p.size for p in profiles)
    return (
        f"they take {sum(p.compute for p in queue)} of {compute} compute and {sum(p.size for p in queue)} of {memory} "
        "memory slices, and may start at some slices only"
    )


INSTANCE = re.compile(
    r"\|\s+(?P<gpu>\d+)\s+MIG (?P<profile>\S+)\s+(?P<id>\d+)\s+(?P<instance>\d+)\s+(?P<start>\d+):(?P<size>\d+)\s+\|"
)
PROFILE = re.compile(
    r"\|\s+(?P<gpu>\d+)\s+MIG (?P<profile>\S+)\s+(?P<id>\d+)\s+(?P<free>\d+)/(?P<total>\d+)\s+(?P<memory>[\d.]+)\s.*\|"
)
PLACES = re.compile(r"GPU\s+(?P<gpu>\d+) Profile ID\s+(?P<id>\d+) Placements?\s*: \{(?P<starts>[\d,]*)\}:(?P<size>\d+)")


def parse_instances(lines: Iterable[str]) -> dict[int, tuple[Placement, ...]]:
    """Return the GPU instances that ``nvidia-smi mig -lgi`` lists, by the GPU's index."""
    found: dict[int, list[Placement]] = {}
    for line in lines:
        if match := INSTANCE.fullmatch(line.strip()):
            found.setdefault(int(match["gpu"]), []).append(Placement(int(match["start"]), match["profile"]))
    return {gpu: tuple(sorted(placements)) for gpu, placements in found.items()}


def parse_profiles(listed: Iterable[str], places: Iterable[str]) -> dict[int, tuple[Profile, ...]]:
    """Return profiles by the GPU's index.

    Args:
        listed: output of ``nvidia-smi mig -lgip``.
        places: output of ``nvidia-smi mig -lgipp``.
    """
    where: dict[tuple[int, int], tuple[tuple[int, ...], int]] = {}
    for line in places:
        if match := PLACES.search(line):
            starts = tuple(int(number) for number in match["starts"].split(",") if number)
            where[int(match["gpu"]), int(match["id"])] = (starts, int(match["size"]))
    found: dict[int, list[Profile]] = {}
    for line in listed:
        if (match := PROFILE.fullmatch(line.strip())) and (int(match["gpu"]), int(match["id"])) in where:
            starts, size = where[int(match["gpu"]), int(match["id"])]
            total = int(match["total"])
            profile = Profile(match["profile"], starts, size, total if total < len(starts) else None)
            found.setdefault(int(match["gpu"]), []).append(profile)
    return {gpu: tuple(profiles) for gpu, profiles in found.items()}


def counted(placements: Iterable[Placement]) -> dict[str, int]:
    """Return how many instances there are of each profile."""
    return dict(sorted(Counter(placement.profile for placement in placements).items()))
