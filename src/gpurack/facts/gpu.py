"""What a host knows of its NVIDIA GPUs: the PCI bus before a driver, NVML after, the kernel log when it goes wrong."""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib.resources import files
from typing import Literal

from pydantic import ValidationError
from pyinfra.api.facts import FactBase

from gpurack.gpu import smi
from gpurack.gpu.cards import lookup
from gpurack.gpu.models import Card, NvmlReport, PciInventory, XidError, pci_address

PCI_DEVICES = "/sys/bus/pci/devices"
# VGA and 3D controllers; a card's audio and USB functions have classes of their own.
DISPLAY_CLASSES = {"0x0300", "0x0302"}
BRIDGE_CLASS = "0x0680"
# The same class as the network controllers of nForce mainboards, whose ids all lie below the first NVSwitch's (Volta).
FIRST_NVSWITCH = 0x1AC0
DEVICE_LINE = re.compile(
    r"(?P<address>[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]) 0x(?P<device>[0-9a-f]{4}) "
    r"(?P<cls>0x[0-9a-f]{4})[0-9a-f]{2} (?P<driver>[\w-]*)"
)


class PciDevices(FactBase[PciInventory]):
    """Returns the :class:`PciInventory`, empty on a host without NVIDIA's cards; needs neither root nor lspci."""

    default = PciInventory

    def command(self) -> str:
        """Print address, device id, class and bound driver of each device of NVIDIA; virtual functions are no cards."""
        return (
            f"for d in {PCI_DEVICES}/*; do "
            '{ read -r vendor <"$d/vendor" && [ "$vendor" = 0x10de ] && [ ! -e "$d/physfn" ] && '
            'read -r device <"$d/device" && read -r class <"$d/class"; } 2>/dev/null || continue; '
            'driver=$(readlink "$d/driver"); echo "${d##*/} $device $class ${driver##*/}"; done'
        )

    def process(self, output: Iterable[str]) -> PciInventory:
        """Tell cards and NVSwitches from the rest."""
        cards: dict[str, Card] = {}
        switches: set[str] = set()
        for line in output:
            if (match := DEVICE_LINE.fullmatch(line.rstrip("\r\n"))) is None:
                continue
            address, device = match["address"], match["device"]
            if match["cls"] in DISPLAY_CLASSES:
                cards[address] = _card(address, device, match["driver"] or None)
            elif match["cls"] == BRIDGE_CLASS and int(device, 16) >= FIRST_NVSWITCH:
                switches.add(address)
        return PciInventory(cards=tuple(cards[key] for key in sorted(cards)), nvswitches=tuple(sorted(switches)))


def _card(address: str, device: str, driver: str | None) -> Card:
    known = lookup(device)
    if known is None:
        return Card(address=address, device_id=device, name=device, driver=driver)
    return Card(address=address, device_id=device, driver=driver, **known.model_dump())


ANSWER_SECONDS = 60
"""After which a driver that does not answer is given up: a wedged GPU blocks whoever asks."""


class Nvml(FactBase[NvmlReport]):
    """Returns the :class:`NvmlReport`, by pynvml or else by nvidia-smi; its source is ``none`` without either."""

    default = NvmlReport

    def command(self) -> str:
        """Run the collector, which is not left on the host; where there is no pynvml, nvidia-smi.

        Python is isolated: a pynvml.py in the home directory of whoever connects is not run as root. It writes no .pyc.
        """
        collector = files("gpurack.gpu").joinpath("collector.py").read_text(encoding="utf-8")
        timeout = f"timeout --kill-after=5 {ANSWER_SECONDS}"
        return (
            "if python3 -I -B -c 'import pynvml' 2>/dev/null; then\n"
            f"{timeout} python3 -I -B - 2>&1 <<'GPURACK' || {_given_up('nvml')}\n"
            f"{collector}\n"
            "GPURACK\n"
            "elif command -v nvidia-smi >/dev/null; then "
            f"{{ {timeout} nvidia-smi -q -x && {timeout} nvidia-smi -L; }} 2>&1 || {_given_up('nvidia-smi')}; fi"
        )

    def process(self, output: Iterable[str]) -> NvmlReport:
        """Read the collector's line, or what nvidia-smi says."""
        lines = [line for line in output if line.strip()]
        for line in reversed(lines):
            if line.startswith("{"):
                try:
                    return NvmlReport.model_validate_json(line)
                except ValidationError as error:
                    return NvmlReport(source="nvml", error=f"unreadable answer: {error.errors()[0]['msg']}")
        if lines and lines[0].startswith("Traceback"):
            return NvmlReport(source="nvml", error=f"the collector failed: {lines[-1]}")
        return smi.parse("\n".join(lines)) if lines else NvmlReport()


def _given_up(source: Literal["nvml", "nvidia-smi"]) -> str:
    """Return the shell command that reports, after `timeout` has ended another, that it did."""
    report = NvmlReport(source=source, error=f"no answer within {ANSWER_SECONDS} s").model_dump_json()
    return f"{{ [ $? -lt 124 ] || echo '{report}'; }}"


# journalctl's and dmesg's own forms: "1732450000.123456 gpu1 kernel: NVRM: ..." and "1732450000,123456 NVRM: ...".
XID_LINE = re.compile(
    r"(?P<time>\d{1,12}(?:[.,]\d{1,9})?) .*?(?P<message>NVRM: Xid \((?:PCI:)?"
    r"(?P<address>[0-9a-fA-F]{4,8}:[0-9a-fA-F]{2}:[0-9a-fA-F]{2})(?:\.[0-7])?\): (?P<xid>\d{1,4})\b.*)"
)


class XidErrors(FactBase[list[XidError]]):
    """Returns the XID errors of the last hours, earlier boots included, oldest first."""

    default = list

    def command(self, since_hours: int = 24) -> str:
        """Print the lines of the journal; of the kernel's own buffer where there is no journal.

        The buffer counts seconds since boot; they are made into seconds since 1970 with the clock as it is now.
        """
        return (
            f"since=$(( $(date +%s) - {since_hours:d} * 3600 )); "
            'lines=$(journalctl --quiet --no-pager --output short-unix --since "@$since" _TRANSPORT=kernel 2>/dev/null '
            "| grep -F 'NVRM: Xid'); "
            'if [ -n "$lines" ]; then printf "%s\\n" "$lines"; else '
            "read -r up _ </proc/uptime; "
            "dmesg 2>/dev/null | sed -n 's/^\\[ *\\([0-9.]*\\)\\] \\(NVRM: Xid.*\\)/\\1 \\2/p' | "
            'awk -v now="$(date +%s)" -v up="$up" -v since="$since" '
            "'{ $1 = sprintf(\"%.6f\", now - up + $1); if ($1 >= since) print }'; fi"
        )

    def process(self, output: Iterable[str]) -> list[XidError]:
        """Parse the lines."""
        found = []
        for line in output:
            if match := XID_LINE.fullmatch(line.strip()):
                found.append(
                    XidError(
                        xid=int(match["xid"]),
                        address=pci_address(match["address"]),
                        message=match["message"],
                        time=float(match["time"].replace(",", ".")),
                    )
                )
        return found
