"""Test hosts with GPUs that are not there: pretended PCI cards, and the NVML double as the driver's library."""

from __future__ import annotations

import hashlib
import json
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pynvml

from gpurack.lab import Machine
from gpurack.lab.pci import FIRST_CARD_BUS
from gpurack.lab.rootfs import CACHE, locked

DOUBLE = Path(__file__).parents[1] / "doubles/nvml"
SCENARIOS = sorted(path.stem for path in (DOUBLE / "scenarios").glob("*.json"))

ANSWERS = "/etc/nvml-double"
# Before the folder of the distribution's library in the linker's order; that one stays as it is.
LIBRARY = "/usr/local/lib/libnvidia-ml.so.1"


@dataclass
class Scenario:
    """A machine's GPUs.

    Attributes:
        cards: PCI device ids.
        nvswitches: number of NVSwitch bridges.
        driver: kernel driver the cards are bound to; None without one.
        nvml: what the library answers, by the names of the file in tests/doubles/nvml; None without a library.
    """

    cards: list[str] = field(default_factory=list)
    nvswitches: int = 0
    driver: str | None = None
    nvml: dict[str, Any] | None = None

    def answers(self) -> str:
        """Return the file the double reads."""
        return "".join(f"{key} {value}\n" for key, value in _flat("", self.nvml or {}))


def scenario(name: str) -> Scenario:
    """Return one of :data:`SCENARIOS`; it may be changed before it is installed."""
    data = json.loads((DOUBLE / f"scenarios/{name}.json").read_text())
    if data["nvml"] and "gpus" in data["nvml"]:
        data["nvml"]["gpus"] = [gpu for template in data["nvml"]["gpus"] for gpu in _repeated(template)]
    return Scenario(**data["pci"], nvml=data["nvml"])


def _repeated(template: dict[str, Any]) -> Iterator[dict[str, Any]]:
    values = {key: value for key, value in template.items() if key != "repeat"}
    for number in range(template.get("repeat", 1)):
        names = {"number": number, "bus": f"{FIRST_CARD_BUS + number:02X}"}
        yield {key: value.format(**names) if isinstance(value, str) else value for key, value in values.items()}


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, below in value.items():
            yield from _flat(f"{prefix}.{key}" if prefix else key, below)
    elif isinstance(value, list):
        yield f"{prefix}.count", str(len(value))
        for number, below in enumerate(value):
            yield from _flat(f"{prefix}.{number}", below)
    elif isinstance(value, str) and value.startswith("!"):
        yield prefix, f"!{getattr(pynvml, f'NVML_ERROR_{value[1:]}')}"
    else:
        yield prefix, str(value)


def build() -> Path:
    """Return the compiled double, built once for each state of its source; needs gcc."""
    source = (DOUBLE / "nvml.c").read_bytes()
    library = CACHE / f"nvml-double-{hashlib.sha256(source).hexdigest()[:12]}" / "libnvidia-ml.so.1"
    with locked(CACHE / "nvml-double.lock"):
        if not library.exists():
            library.parent.mkdir(parents=True, exist_ok=True)
            unfinished = library.with_suffix(".new")
            subprocess.run(
                [
                    *("gcc", "-std=c11", "-O1", "-Wall", "-Wextra", "-Werror", "-D_DEFAULT_SOURCE", "-shared", "-fPIC"),
                    *("-Wl,-soname,libnvidia-ml.so.1", "-o", str(unfinished), str(DOUBLE / "nvml.c")),
                ],
                check=True,
            )
            unfinished.rename(library)
    return library


def install(machine: Machine, wanted: Scenario | str, *, pynvml: bool = True) -> None:
    """Make a host look as if it had the GPUs and the driver of a scenario; may be called again with another one.

    Args:
        machine: an nspawn host.
        wanted: a scenario, or the name of one.
        pynvml: install python3-pynvml, whose own dependency libnvidia-ml1 then lies behind the double.
    """
    there = scenario(wanted) if isinstance(wanted, str) else wanted
    machine.pretend_cards(there.cards, nvswitches=there.nvswitches, driver=there.driver)
    if there.nvml is None:
        machine.ssh(f"rm -f {LIBRARY} {ANSWERS}; ldconfig")
        return
    put(machine, LIBRARY, build().read_bytes())
    put(machine, ANSWERS, there.answers().encode())
    if pynvml:
        install_pynvml(machine)
    machine.ssh("ldconfig")


def install_pynvml(machine: Machine) -> None:
    """Install Debian's pynvml, as the role nvidia_driver does."""
    _package(machine, "python3-pynvml")


def _package(machine: Machine, name: str) -> None:
    machine.ssh(
        f"dpkg-query -W {name} >/dev/null 2>&1 || {{ apt-get -q update; "
        f"DEBIAN_FRONTEND=noninteractive apt-get -qy --no-install-recommends install {name}; }}",
        timeout=300,
    )


def put(machine: Machine, path: str, content: bytes) -> None:
    """Write a file on a host."""
    subprocess.run(
        [*machine.ssh_command(), f"sudo -n sh -c 'cat > {path}.new && mv {path}.new {path}'"],
        input=content,
        check=True,
        timeout=60,
    )


def log_kernel(machine: Machine, *messages: str, age_seconds: float = 0) -> None:
    """Write lines into a host's journal as if its kernel had said them.

    A container's journald does not read the kernel's messages; these come in a journal file of their own, made by
    systemd-journal-remote, as the journal of another boot would.
    """
    _package(machine, "systemd-journal-remote")
    name = machine.ssh("cat /etc/hostname /etc/machine-id").stdout.split()
    micros = int((time.time() - age_seconds) * 1_000_000)
    entries = "".join(
        f"__REALTIME_TIMESTAMP={micros + number}\n__MONOTONIC_TIMESTAMP={number + 1}\n_BOOT_ID={name[1]}\n"
        f"_TRANSPORT=kernel\nSYSLOG_IDENTIFIER=kernel\nPRIORITY=3\n_HOSTNAME={name[0]}\n_MACHINE_ID={name[1]}\n"
        f"MESSAGE={message}\n\n"
        for number, message in enumerate(messages)
    )
    put(machine, "/run/kernel.export", entries.encode())
    machine.ssh(
        f"mkdir -p /var/log/journal/{name[1]} && cd /var/log/journal/{name[1]} && "
        f"/lib/systemd/systemd-journal-remote --output=kernel-{micros}.journal /run/kernel.export"
    )
