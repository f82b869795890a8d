"""Controls of the mig role."""

from __future__ import annotations

from typing import Any

from gpurack.controls import NotApplicable, control
from gpurack.facts.mig import MigStates
from gpurack.gpu.evidence import cards, read
from gpurack.gpu.mig import MigError
from gpurack.gpu.mig_plan import Plan, plans
from gpurack.operations.mig import UNIT, UNIT_FILE, unit_of
from roles.mig.settings import MigSettings


def _plans(host: Any, settings: MigSettings) -> list[Plan]:
    cards(host)
    if not settings.layouts:
        raise NotApplicable("the settings divide no GPU")
    state = read(host, MigStates)
    assert not state.error, f"the driver does not answer: {state.error}"
    try:
        return plans(state.gpus, settings.layouts)
    except MigError as error:
        raise AssertionError(str(error)) from None


@control("MIG-01", "GPUs are divided as declared", severity="high")
def test_layout(host: Any, settings: MigSettings) -> None:
    """Services name their MIG devices: with another division they do not start, or share what was to be apart."""
    wrong = [plan.difference for plan in _plans(host, settings) if not plan.in_place]
    assert not wrong, "; ".join(wrong)


@control("MIG-02", "GPUs are divided again at boot, before Docker starts", severity="high")
def test_boot_unit(host: Any, settings: MigSettings) -> None:
    """MIG devices do not outlive a reboot; without the unit the services that name them stay down."""
    wanted = _plans(host, settings)
    if not any(plan.wanted for plan in wanted):
        raise NotApplicable("the settings switch MIG off")
    file = host.file(UNIT_FILE)
    assert file.exists, f"{UNIT_FILE} is missing"
    assert file.content_string == unit_of(wanted), f"{UNIT_FILE} makes another division than the settings"
    assert host.service(UNIT).is_enabled, f"{UNIT} is not enabled: it would not run at boot"
