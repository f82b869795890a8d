"""Tests of the cards' health: errors, heat, power, memory, partition."""

from __future__ import annotations

from typing import Literal, get_args

from gpurack.controls import Severity
from gpurack.doctor.diagnosis import NOT_APPLICABLE, Sign, test
from gpurack.doctor.evidence import Evidence
from gpurack.doctor.xids import RESET, explain
from gpurack.gpu.models import Gpu

Answer = Sign | Literal["not applicable"] | None


def _throttled(evidence: Evidence, *reasons: str) -> list[Gpu]:
    return [gpu for gpu in evidence.nvml.gpus if set(reasons) & set(gpu.throttle_reasons)]


@test(
    "xid-errors",
    "The driver reports XID errors",
    severity="high",
    needs=("gpu",),
    explains=("answers-fail",),
)
def xid_errors(evidence: Evidence) -> Sign | None:
    """Each is something that went wrong on a card since the host was started; what ran there has failed."""
    if not evidence.xids:
        return None
    grades = list(get_args(Severity))
    numbers = sorted(
        {error.xid for error in evidence.xids}, key=lambda item: (-grades.index(explain(item).severity), item)
    )
    seen = []
    for number in numbers:
        errors = [error for error in evidence.xids if error.xid == number]
        seen.append(f"XID {number}, {len(errors)} times: {explain(number).meaning}")
        seen.append(f"  last: {errors[-1].message}")
    worst = explain(numbers[0])
    return Sign(
        seen,
        worst.cure,
        title=f"XID {numbers[0]}: {worst.meaning}",
        severity=worst.severity,
    )


@test(
    "ecc-errors",
    "Memory errors that ECC cannot correct",
    severity="critical",
    needs=("gpu",),
    explains=("row-remap-pending", "answers-fail"),
)
def ecc_errors(evidence: Evidence) -> Answer:
    """What was computed with that memory was ended or is wrong; the card is on its way out if they come again."""
    if not evidence.driver_answers or all(gpu.ecc_enabled is None for gpu in evidence.nvml.gpus):
        return NOT_APPLICABLE
    bad = [gpu for gpu in evidence.nvml.gpus if gpu.ecc_uncorrected]
    if not bad:
        return None
    return Sign(
        [f"GPU {gpu.index} {gpu.name} {gpu.uuid}: {gpu.ecc_uncorrected} uncorrected errors" for gpu in bad], RESET
    )


@test("row-remap-pending", "A memory repair waits for a reset of the card", severity="high", needs=("gpu",))
def row_remap_pending(evidence: Evidence) -> Answer:
    """Bad memory rows stay in use until the card is reset, and give errors again."""
    if not evidence.driver_answers or all(gpu.pending_row_remap is None for gpu in evidence.nvml.gpus):
        return NOT_APPLICABLE
    bad = [gpu for gpu in evidence.nvml.gpus if gpu.pending_row_remap]
    if not bad:
        return None
    return Sign(
        [f"GPU {gpu.index} {gpu.name} {gpu.uuid}: row remapping or page retirement pending" for gpu in bad], RESET
    )


@test("thermal-slowdown", "A card slows itself down: too hot", severity="high", needs=("gpu",))
def thermal_slowdown(evidence: Evidence) -> Answer:
    """Answers take longer, and a card that is always hot fails early."""
    if not evidence.driver_answers:
        return NOT_APPLICABLE
    hot = _throttled(evidence, "hw_thermal_slowdown", "sw_thermal_slowdown")
    known = {gpu.index for gpu in hot}
    hot += [
        gpu
        for gpu in evidence.nvml.gpus
        if gpu.index not in known
        and gpu.temperature_celsius is not None
        and gpu.temperature_slowdown_celsius is not None
        and gpu.temperature_celsius >= gpu.temperature_slowdown_celsius
    ]
    # The general reason alone, of drivers that do not tell which: heat, or the power brake.
    details = {"hw_thermal_slowdown", "hw_power_brake_slowdown"}
    known = {gpu.index for gpu in hot}
    hot += [
        gpu
        for gpu in _throttled(evidence, "hw_slowdown")
        if gpu.index not in known and not details & set(gpu.throttle_reasons)
    ]
    if not hot:
        return None
    return Sign(
        [
            f"GPU {gpu.index} {gpu.name}: {gpu.temperature_celsius} °C, slows down from "
            f"{gpu.temperature_slowdown_celsius} °C ({', '.join(gpu.throttle_reasons) or 'at the limit'})"
            for gpu in hot
        ],
        "Check fans, dust, the room's air and the space between cards; until then lower the power limit: "
        "`nvidia-smi -i INDEX -pl WATTS`.",
    )


@test("power-brake", "The power supply brakes a card", severity="high", needs=("gpu",))
def power_brake(evidence: Evidence) -> Answer:
    """The machine tells the card to halve its clocks: the supply is overloaded, a second one failed, or is too weak."""
    if not evidence.driver_answers:
        return NOT_APPLICABLE
    braked = _throttled(evidence, "hw_power_brake_slowdown")
    if not braked:
        return None
    return Sign(
        [f"GPU {gpu.index} {gpu.name}: power brake, {gpu.power_watts} of {gpu.power_limit_watts} W" for gpu in braked],
        "Look at the power supplies in the machine's management controller (`ipmitool sdr type 'Power Supply'`), at "
        "the cards' power cables, and at the rack's limit.",
    )


@test(
    "mig-without-instances",
    "MIG is on, and no MIG device is made",
    severity="critical",
    needs=("gpu",),
    explains=("container-runtime-missing", "container-lost-gpu", "ollama-on-cpu", "ollama-down", "model-spilled"),
)
def mig_without_instances(evidence: Evidence) -> Answer:
    """A partitioned card without partitions computes nothing: CUDA finds no device."""
    parted = [gpu for gpu in evidence.nvml.gpus if gpu.mig_enabled]
    if not parted:
        return NOT_APPLICABLE
    empty = [gpu for gpu in parted if not gpu.mig]
    if not empty:
        return None
    return Sign(
        [f"GPU {gpu.index} {gpu.name} {gpu.uuid}: MIG mode on, no instances" for gpu in empty],
        f"Declare a layout in the mig role's settings and run: {evidence.deploy('gpu')}; or turn MIG off: "
        f"`nvidia-smi -i {empty[0].index} -mig 0`.",
    )
