"""How a host's GPUs are divided, by nvidia-smi."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from pyinfra.api.facts import FactBase

from gpurack.gpu.mig import parse_instances, parse_profiles
from gpurack.gpu.mig_plan import Divided

QUERIES = {
    "gpus": "--query-gpu=index,uuid,pci.device_id,mig.mode.current,name --format=csv,noheader",
    "devices": "-L",
    "instances": "mig -lgi",
    "profiles": "mig -lgip",
    "places": "mig -lgipp",
    "processes": "--query-compute-apps=gpu_uuid,pid,process_name --format=csv,noheader",
}
GPU = re.compile(r"GPU (?P<index>\d+): .*\(UUID: (?P<uuid>GPU-[0-9a-f-]+)\)")
MIG_DEVICE = re.compile(r"\s+MIG \S+\s+Device\s+\d+: \(UUID: (?P<uuid>MIG-[0-9A-Za-z/-]+)\)")


@dataclass(frozen=True)
class MigState:
    """The GPUs; ``error`` says why there are none, in nvidia-smi's words."""

    gpus: tuple[Divided, ...] = ()
    error: str = ""


class MigStates(FactBase[MigState]):
    """Returns the :class:`MigState`."""

    default = staticmethod(lambda: MigState(error="nvidia-smi is not installed"))

    def command(self) -> str:
        """Print what each query answers, marked with its name. Without MIG, some only say so, and fail."""
        queries = "; ".join(f"nvidia-smi {query} 2>&1 | sed 's/^/{name} /'" for name, query in QUERIES.items())
        return f"if command -v nvidia-smi >/dev/null 2>&1; then {queries}; fi"

    def process(self, output: Iterable[str]) -> MigState:
        """Put the answers together."""
        lines: dict[str, list[str]] = {name: [] for name in QUERIES}
        for line in output:
            mark, _, text = line.partition(" ")
            lines.setdefault(mark, []).append(text)
        rows = [[cell.strip() for cell in line.split(",", 4)] for line in lines["gpus"]]
        gpus = [row for row in rows if len(row) == 5 and row[0].isdecimal() and row[1].startswith("GPU-")]
        if not gpus:
            words = " ".join(" ".join(lines["gpus"]).split())
            return MigState(error=words or "nvidia-smi shows no GPU")
        devices = _devices(lines["devices"])
        instances = parse_instances(lines["instances"])
        profiles = parse_profiles(lines["profiles"], lines["places"])
        users = _processes(lines["processes"], devices)
        return MigState(
            tuple(
                Divided(
                    index=int(index),
                    uuid=uuid,
                    device_id=device.lower().removeprefix("0x")[:4],
                    name=name,
                    mode=mode,
                    instances=instances.get(int(index), ()),
                    devices=devices.get(uuid, ()),
                    profiles=profiles.get(int(index), ()),
                    processes=users.get(uuid, ()),
                )
                for index, uuid, device, mode, name in gpus
            )
        )


def _devices(lines: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Return the UUIDs of MIG devices by that of their GPU."""
    found: dict[str, tuple[str, ...]] = {}
    gpu = ""
    for line in lines:
        if match := GPU.fullmatch(line.strip()):
            gpu = match["uuid"]
        elif gpu and (match := MIG_DEVICE.match(line)):
            found[gpu] = (*found.get(gpu, ()), match["uuid"])
    return found


def _processes(lines: Iterable[str], devices: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """Return processes by the UUID of their GPU; drivers name either the GPU or the MIG device."""
    parent = {device: gpu for gpu, mine in devices.items() for device in mine}
    found: dict[str, tuple[str, ...]] = {}
    for line in lines:
        cells = [cell.strip() for cell in line.split(",", 2)]
        if len(cells) == 3 and cells[1].isdecimal():
            gpu = parent.get(cells[0], cells[0])
            found[gpu] = (*found.get(gpu, ()), f"{cells[2]} ({cells[1]})")
    return found
