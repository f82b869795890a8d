"""Operations that divide GPUs."""

from __future__ import annotations

import shlex
from collections.abc import Generator, Sequence
from io import StringIO

from pyinfra import host
from pyinfra.api import OperationError, operation
from pyinfra.api.command import PyinfraCommand
from pyinfra.facts.systemd import SystemdEnabled
from pyinfra.operations import files

from gpurack.diff import log_diff
from gpurack.facts.mig import MigStates
from gpurack.facts.textfile import TextFile
from gpurack.gpu.mig import MigError
from gpurack.gpu.mig_plan import Layout, Plan, plans
from gpurack.rendering import render

UNIT = "gpurack-mig.service"
UNIT_FILE = f"/etc/systemd/system/{UNIT}"
TEMPLATE = f"templates/mig/{UNIT}.j2"

Commands = Generator[str | PyinfraCommand, None, None]


@operation()
def partition(layouts: Sequence[Layout]) -> Commands:
    """Divide the GPUs as the layouts say; a GPU that is already, or that no layout names, is left alone.

    + layouts: of single GPUs, or of all
    """
    wanted = yield from _plans(layouts)
    if wanted is None:
        return
    changed = [plan for plan in wanted if not plan.in_place]
    for plan in changed:
        yield from plan.commands
    if not changed:
        host.noop("GPUs are divided as declared")


@operation()
def boot_unit(layouts: Sequence[Layout]) -> Commands:
    """Divide the GPUs again at every boot, before Docker starts: instances do not outlive a reboot.

    + layouts: of single GPUs, or of all; without one that divides anything, the unit is removed
    """
    current = host.get_fact(TextFile, path=UNIT_FILE)
    if not any(layout.profiles for layout in layouts):
        if current is None:
            host.noop(f"{UNIT} is not needed")
        else:
            yield f"systemctl disable {UNIT}; rm -f {UNIT_FILE} && systemctl daemon-reload"
        return
    found = yield from _plans(layouts)
    if found is None:
        return
    wanted = unit_of(found)
    if current is None or (current.content, current.owner, current.mode) != (wanted, "root:root", "644"):
        log_diff(UNIT_FILE, current.content if current else "", wanted)
        yield from files.put._inner(src=StringIO(wanted), dest=UNIT_FILE, user="root", group="root", mode="644")
        yield f"systemctl daemon-reload && systemctl enable {UNIT}"
    elif not host.get_fact(SystemdEnabled, services=[UNIT]).get(UNIT):
        yield f"systemctl enable {UNIT}"
    else:
        host.noop(f"{UNIT} is enabled")


def unit_of(found: Sequence[Plan]) -> str:
    """Return the unit that makes these plans so after a boot."""
    return render(TEMPLATE, plans=[plan for plan in found if plan.wanted])


def _plans(layouts: Sequence[Layout]) -> Generator[str, None, list[Plan] | None]:
    """Return what is to be done, or, where it cannot be, end the operation with the reason.

    While the run is being prepared a missing driver is no fault: its role comes first, and has not run yet.
    """
    state = host.get_fact(MigStates)
    if state.error:
        message = f"GPUs cannot be divided, the driver does not answer: {state.error[:300]}"
        yield f"nvidia-smi -L || {{ echo {shlex.quote(message)} >&2; exit 1; }}"
        return None
    try:
        return plans(state.gpus, layouts)
    except MigError as error:
        if not host.state.is_executing:
            raise OperationError(str(error)) from error
        yield f"echo {shlex.quote(str(error))} >&2; exit 1"
        return None
