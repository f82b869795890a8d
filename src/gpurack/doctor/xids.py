"""What XID errors mean, after NVIDIA's documentation of them (docs.nvidia.com/deploy/xid-errors)."""

from __future__ import annotations

from dataclasses import dataclass

from gpurack.controls import Severity

APPLICATION = "Restart what used the GPU; if it comes again with other programs too, have the card checked."
RESET = (
    "Stop what uses the GPU, then `nvidia-smi --gpu-reset -i INDEX`, or reboot; if it comes again, replace the card."
)
REBOOT = "Reboot the host; if it comes again, update the driver, then have the card checked."
SUPPORT = "Take the card out of service and have it replaced (NVIDIA's field diagnostics confirm it)."
OFF_THE_BUS = (
    "Power the host off and on (a reboot often does not bring the card back); then check the card's seat, its power "
    "cables, the power supply and its temperature."
)


@dataclass(frozen=True)
class Xid:
    """The meaning of an XID number, how bad it is, and what to do."""

    meaning: str
    severity: Severity
    cure: str


XIDS = {
    8: Xid("the GPU stopped processing", "medium", APPLICATION),
    13: Xid("graphics engine exception, mostly a program's bad access", "medium", APPLICATION),
    31: Xid("memory page fault, mostly a program's bad access", "medium", APPLICATION),
    32: Xid("invalid or corrupted push buffer: driver, program or PCIe", "medium", APPLICATION),
    38: Xid("driver firmware error", "high", REBOOT),
    43: Xid("the GPU stopped processing for a program that hit an error", "medium", APPLICATION),
    45: Xid("work was ended early, after another error or an abort", "low", APPLICATION),
    48: Xid("double-bit memory error (uncorrectable ECC)", "high", RESET),
    61: Xid("internal microcontroller breakpoint or warning", "high", RESET),
    62: Xid("internal microcontroller halt", "high", RESET),
    63: Xid("a memory page or row is retired at the next reset", "medium", RESET),
    64: Xid("retiring a memory page or row failed", "critical", SUPPORT),
    69: Xid("graphics engine class error", "medium", APPLICATION),
    74: Xid("NVLink error", "high", "Check the NVLink bridge or NVSwitch: `nvidia-smi nvlink --status`; then " + RESET),
    79: Xid("the GPU has fallen off the bus", "critical", OFF_THE_BUS),
    92: Xid("high rate of corrected memory errors", "medium", "Watch it; with XID 48, 63 or 64 too: " + RESET),
    94: Xid("contained uncorrectable memory error: one program was ended", "high", RESET),
    95: Xid("uncontained uncorrectable memory error: all programs on the GPU are affected", "critical", RESET),
    109: Xid("context switch timed out", "high", RESET),
    119: Xid("the GPU's system processor (GSP) did not answer in time", "critical", REBOOT),
    120: Xid("error of the GPU's system processor (GSP)", "critical", REBOOT),
    121: Xid("corrected error of the chip-to-chip link", "low", "Watch it."),
    136: Xid("link training failed", "high", RESET),
    140: Xid("unrecovered memory error", "critical", RESET),
    143: Xid("the GPU could not be initialised", "critical", REBOOT),
    145: Xid("NVLink remote timeout", "high", RESET),
    149: Xid("NVLink fatal error", "high", RESET),
    154: Xid("the driver asks for a recovery; its message says which: reset, drain or reboot", "high", RESET),
}

UNKNOWN = Xid("not in this list: see NVIDIA's catalogue of XID errors", "medium", REBOOT)


def explain(number: int) -> Xid:
    """Return the meaning of an XID number."""
    return XIDS.get(number, UNKNOWN)
