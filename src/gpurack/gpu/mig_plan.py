"""What has to be done on a host's GPUs so that they are divided as declared, and what forbids it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from gpurack.gpu.mig import MigError, Placement, Profile, counted, known_profiles, place
from gpurack.gpu.models import Card

ALL = "all"


class Layout(Protocol):
    """What the settings say of one GPU, or of all; see ``roles/mig/settings.py``."""

    @property
    def gpu(self) -> str:
        """Index, UUID, or ``all``."""

    @property
    def profiles(self) -> Mapping[str, int]:
        """How many instances of each profile; empty: MIG is off."""


@dataclass(frozen=True)
class Divided:
    """A GPU as nvidia-smi shows it.

    Attributes:
        index: nvidia-smi's index.
        uuid: ``GPU-...``.
        device_id: PCI device id.
        name: product name.
        mode: ``Enabled``, ``Disabled``, or ``[N/A]`` on cards without MIG.
        instances: its GPU instances.
        devices: UUIDs of its MIG devices: of the instances that programs can use.
        profiles: what nvidia-smi offers; empty while MIG is off.
        processes: who uses it, as ``name (pid)``.
    """

    index: int
    uuid: str
    device_id: str
    name: str
    mode: str
    instances: tuple[Placement, ...] = ()
    devices: tuple[str, ...] = ()
    profiles: tuple[Profile, ...] = ()
    processes: tuple[str, ...] = ()

    @property
    def has_mig(self) -> bool:
        """Whether it can be divided at all."""
        return self.mode in ("Enabled", "Disabled")

    def __str__(self) -> str:
        return f"GPU {self.index} ({self.name})"


@dataclass(frozen=True)
class Plan:
    """A GPU and the instances it is to have, none for MIG switched off."""

    gpu: Divided
    wanted: tuple[Placement, ...]

    @property
    def in_place(self) -> bool:
        """Whether nothing has to be done; where the instances are placed does not matter."""
        if not self.wanted:
            return self.gpu.mode != "Enabled"
        return (
            self.gpu.mode == "Enabled"
            and counted(self.gpu.instances) == counted(self.wanted)
            and len(self.gpu.devices) == len(self.wanted)
        )

    @property
    def difference(self) -> str:
        """What is not as wanted, in words."""
        has = ", ".join(f"{number} of {name}" for name, number in counted(self.gpu.instances).items()) or "no instances"
        if self.gpu.mode == "Enabled" and len(self.gpu.devices) != len(self.gpu.instances):
            has += f" and {len(self.gpu.devices)} usable devices"
        wants = ", ".join(f"{number} of {name}" for name, number in counted(self.wanted).items())
        return f"{self.gpu}: MIG is {self.gpu.mode} with {has}; wanted is {wants or 'MIG off'}"

    @property
    def commands(self) -> tuple[str, ...]:
        """Shell commands that make it so; each fails with a reason."""
        gpu = shlex.quote(self.gpu.uuid)
        steps = []
        if self.gpu.mode == "Enabled" and (self.gpu.instances or self.gpu.devices):
            # An instance without a compute instance has nothing for the first command to remove.
            steps.append(f"nvidia-smi mig -i {gpu} -dci >/dev/null 2>&1; nvidia-smi mig -i {gpu} -dgi")
        mode = "Enabled" if self.wanted else "Disabled"
        if self.gpu.mode != mode:
            query = f"nvidia-smi -i {gpu} --query-gpu=mig.mode.current --format=csv,noheader"
            steps.append(
                f'nvidia-smi -i {gpu} -mig {int(bool(self.wanted))} && test "$({query})" = {mode} || {{ echo '
                f"{shlex.quote(f'{self.gpu}: MIG does not become {mode.lower()}: something holds the GPU. Stop what ')}"
                "'monitors it (dcgm, a container), or reboot, then run again' >&2; exit 1; }"
            )
        if self.wanted:
            steps.append(f"nvidia-smi mig -i {gpu} -cgi {shlex.quote(','.join(map(str, self.wanted)))} -C")
        return tuple(steps)


def plans(gpus: Sequence[Divided], layouts: Sequence[Layout]) -> list[Plan]:
    """Return a plan for every GPU that a layout names; a GPU's own layout counts more than that of all.

    Raises:
        MigError: a layout names a GPU that is not there, has no MIG, has no such profiles, or is in use.
    """
    names = {name for gpu in gpus for name in (str(gpu.index), gpu.uuid)}
    if unknown := [layout.gpu for layout in layouts if layout.gpu != ALL and layout.gpu not in names]:
        there = ", ".join(f"{gpu.index} = {gpu.uuid} ({gpu.name})" for gpu in gpus) or "none"
        raise MigError(f"layouts name GPU {', '.join(unknown)}, and this host's GPUs are {there}")
    found = []
    for gpu in gpus:
        layout = layout_of(layouts, str(gpu.index), gpu.uuid)
        if layout is not None:
            found.append(_plan(gpu, layout))
    return found


def layout_of(layouts: Sequence[Layout], *names: str) -> Layout | None:
    """Return the layout for a GPU of these names: its own, that of all, or None."""
    own = [layout for layout in layouts if layout.gpu in names]
    return next(iter(own or [layout for layout in layouts if layout.gpu == ALL]), None)


def _plan(gpu: Divided, layout: Layout) -> Plan:
    if not layout.profiles:
        wanted: tuple[Placement, ...] = ()
    elif not gpu.has_mig:
        raise MigError(f"{gpu} has no MIG: take it out of mig.layouts, or name the GPUs that are to be divided")
    else:
        # The table first: what nvidia-smi offers on a divided GPU may leave out places that are taken now.
        profiles = known_profiles(gpu.device_id) or gpu.profiles
        if not profiles:
            raise MigError(
                f"{gpu} is not in gpurack's table of MIG profiles: switch MIG on by hand (nvidia-smi -i {gpu.index} "
                "-mig 1), so that nvidia-smi tells them, and run again"
            )
        try:
            wanted = place(profiles, layout.profiles)
        except MigError as error:
            raise MigError(f"{gpu}: {error}") from None
    plan = Plan(gpu, wanted)
    if not plan.in_place and gpu.processes:
        raise MigError(
            f"{gpu} is in use by {', '.join(gpu.processes)}: stop that first, dividing it anew would kill it"
        )
    return plan


def check_cards(cards: Sequence[Card], layouts: Sequence[Layout]) -> None:
    """Raise a MigError for what can be said before a driver is there, by the cards' PCI ids."""
    for index, card in enumerate(cards):
        layout = layout_of(layouts, str(index))
        profiles = known_profiles(card.device_id)
        if layout is not None and layout.profiles and profiles:
            try:
                place(profiles, layout.profiles)
            except MigError as error:
                raise MigError(f"GPU {index} ({card.name}): {error}") from None
