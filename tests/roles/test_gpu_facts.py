"""GPU facts and `gpurack gpus` on real hosts of each supported release: pretended cards, the NVML double as library."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from pprint import pformat
from typing import Any

import pytest

from gpurack.facts.gpu import Nvml, PciDevices, XidErrors
from gpurack.gpu.models import NvmlReport, PciInventory
from gpurack.lab import Machine
from tests.testbed import gpus
from tests.testbed.site import ROOT

pytestmark = pytest.mark.host

SMI = """#!/bin/sh
case $1 in
-L) echo "GPU 0: NVIDIA A30 (UUID: GPU-1)"; echo "  MIG 1g.6gb      Device  0: (UUID: MIG-1)" ;;
*) echo '<?xml version="1.0" ?><nvidia_smi_log><driver_version>535.309.01</driver_version><gpu id="00000000:41:00.0">
<uuid>GPU-1</uuid><mig_devices><mig_device><index>0</index></mig_device></mig_devices></gpu></nvidia_smi_log>' ;;
esac
"""


@pytest.fixture(scope="module")
def machine(machines: Any, release: str) -> Machine:
    """Return a host with two pretended cards and an NVSwitch from its first boot."""
    [fresh] = machines(release=release, cards=["2684", "20b2"], nvswitches=1)
    return fresh  # type: ignore[no-any-return]


def fact(machine: Machine, reader: Any, *, user: bool = False, **arguments: Any) -> Any:
    """Read a fact as root, or as the user who logs in."""
    command = reader.command(**arguments)
    if user:
        line = [*machine.ssh_command(), command]
        output = subprocess.run(line, capture_output=True, text=True, check=True, timeout=60).stdout
    else:
        output = machine.ssh(command).stdout
    return reader.process(output.splitlines())


def test_cards_are_seen_without_root_and_after_a_reboot(machine: Machine) -> None:
    found = fact(machine, PciDevices(), user=True)
    assert [(card.address, card.name, card.driver) for card in found.cards] == [
        ("0000:41:00.0", "GeForce RTX 4090", None),
        ("0000:42:00.0", "A100 SXM4 80GB", None),
    ]
    assert found.nvswitches == ("0000:c1:00.0",)
    machine.reboot()
    assert fact(machine, PciDevices()) == found


def test_a_bound_driver_is_named_and_a_host_without_cards_has_none(machine: Machine) -> None:
    machine.pretend_cards(["1b38"], driver="nouveau")
    [card] = fact(machine, PciDevices()).cards
    assert (card.name, card.driver) == ("Tesla P40", "nouveau")
    # A virtual function of a card that is shared between virtual machines is no card more.
    machine.pretend_cards(["20b2", "20b2"], driver="nvidia")
    (machine.folder / "pci/0000:42:00.0/physfn").symlink_to("../0000:41:00.0")
    assert [card.address for card in fact(machine, PciDevices()).cards] == ["0000:41:00.0"]
    machine.pretend_cards([])
    assert fact(machine, PciDevices()) == PciInventory()


def test_without_anything_to_ask_there_is_no_report(machine: Machine) -> None:
    assert fact(machine, Nvml()) == NvmlReport(source="none")


def test_nvidia_smi_is_asked_where_there_is_no_pynvml(machine: Machine) -> None:
    gpus.put(machine, "/usr/local/bin/nvidia-smi", SMI.encode())
    machine.ssh("chmod 755 /usr/local/bin/nvidia-smi")
    found = fact(machine, Nvml())
    assert (found.source, found.driver_version) == ("nvidia-smi", "535.309.01")
    [gpu] = found.gpus
    assert (gpu.address, gpu.mig[0].profile, gpu.mig[0].uuid) == ("0000:41:00.0", "1g.6gb", "MIG-1")
    gpus.put(
        machine,
        "/usr/local/bin/nvidia-smi",
        b"#!/bin/sh\necho 'Failed to initialize NVML: Driver/library version mismatch'; exit 18\n",
    )
    machine.ssh("chmod 755 /usr/local/bin/nvidia-smi")
    assert fact(machine, Nvml()).error == "Driver/library version mismatch"
    machine.ssh("rm /usr/local/bin/nvidia-smi")


def test_the_kernels_own_buffer_is_read_where_there_is_no_journal(machine: Machine) -> None:
    xid = "NVRM: Xid (PCI:0000:41:00): 48, pid=1, DBE"
    gpus.put(machine, "/usr/local/bin/dmesg", f"#!/bin/sh\necho '[   12.345678] {xid}'\necho '[   13.0] x'\n".encode())
    machine.ssh("chmod 755 /usr/local/bin/dmesg")
    booted = float(machine.ssh("date +%s").stdout) - float(machine.ssh("cut -d ' ' -f 1 /proc/uptime").stdout)
    since = int((float(machine.ssh("date +%s").stdout) - booted) / 3600)
    [error] = fact(machine, XidErrors(), since_hours=since + 1)
    assert (error.xid, error.message) == (48, xid) and abs(error.time - booted - 12.345678) < 3
    assert since == 0 or fact(machine, XidErrors(), since_hours=since) == []
    machine.ssh("rm /usr/local/bin/dmesg")


@pytest.mark.parametrize("name", gpus.SCENARIOS)
def test_debians_pynvml_tells_what_the_scenario_says(machine: Machine, name: str) -> None:
    gpus.install_pynvml(machine)
    gpus.install(machine, name)
    there = gpus.scenario(name)
    pci, found = fact(machine, PciDevices()), fact(machine, Nvml())
    assert [card.device_id for card in pci.cards] == there.cards and len(pci.nvswitches) == there.nvswitches
    if there.nvml is None or "init" in there.nvml:
        # Without the double, Debian's own library answers: a test host has no driver.
        error = "Driver/library version mismatch" if name == "mismatch" else "Driver Not Loaded"
        assert found == NvmlReport(source="nvml", error=error)
        return
    assert (found.source, found.error, found.driver_version) == ("nvml", "", there.nvml["driver_version"])
    assert [gpu.uuid for gpu in found.gpus] == [gpu.get("uuid", "") for gpu in there.nvml["gpus"]]
    assert [gpu.temperature_celsius for gpu in found.gpus if not gpu.error] == [
        wanted["temperature"] for gpu, wanted in zip(found.gpus, there.nvml["gpus"], strict=True) if not gpu.error
    ]
    assert {gpu.address for gpu in found.gpus} - {""} <= {card.address for card in pci.cards}


def test_the_doubles_errors_are_worded_as_the_real_librarys(machine: Machine) -> None:
    gpus.install(machine, "rtx4090")
    words = machine.ssh(
        "python3 -c 'import ctypes, sys\n"
        f'for path in "/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1", "{gpus.LIBRARY}":\n'
        "    words = ctypes.CDLL(path).nvmlErrorString\n"
        "    words.restype = ctypes.c_char_p\n"
        "    print([words(number).decode() for number in (*range(19), 999)])'"
    ).stdout.splitlines()
    assert len(words) == 2 and words[0] == words[1]


def test_a_pynvml_in_the_home_directory_is_not_run(machine: Machine) -> None:
    gpus.install(machine, "rtx4090")
    machine.ssh("echo 'raise SystemExit(\"planted\")' | tee /root/pynvml.py > ~admin/pynvml.py")
    assert fact(machine, Nvml(), user=True).gpus[0].name == "NVIDIA GeForce RTX 4090"
    machine.ssh("rm /root/pynvml.py ~admin/pynvml.py")


def test_reading_leaves_nothing_behind(machine: Machine) -> None:
    gpus.install(machine, "rtx4090")
    listing = "find / -xdev -newer /root/before ! -path '/var/log/*' ! -path '/run/*' ! -path '/tmp/*' -type f"
    machine.ssh("touch /root/before")
    for reader in (PciDevices(), Nvml(), XidErrors()):
        fact(machine, reader)
    assert machine.ssh(listing).stdout == ""


def test_xid_errors_of_the_kernel_log(machine: Machine) -> None:
    fallen = "NVRM: Xid (PCI:0000:41:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus."
    gpus.log_kernel(machine, "NVRM: loading NVIDIA UNIX x86_64 Kernel Module", fallen, age_seconds=7200)
    gpus.log_kernel(machine, "NVRM: Xid (PCI:0000:42:00): 13, Graphics Exception", age_seconds=30 * 3600)
    machine.ssh("logger -t kernel 'NVRM: Xid (PCI:0000:41:00): 31, anyone may write this'")
    assert [(error.xid, error.message) for error in fact(machine, XidErrors())] == [(79, fallen)]
    assert [error.xid for error in fact(machine, XidErrors(), since_hours=48)] == [13, 79]
    assert fact(machine, XidErrors(), since_hours=1) == []


# In a process of its own: like the gpurack command, it lets pyinfra patch the standard library, which pytest must not.
READ = """
import json, sys
from pyinfra.api.facts import FactBase
from gpurack.fleet import HostError, connection, on_each, read
from gpurack.inventory import load

class Said(FactBase):
    def command(self, script):
        return script

def visit(host):
    said = []
    with connection(host):
        for script in ("echo no card >&2; exit 3", "sleep 40", "id -u"):
            try:
                said.append(read(host, Said, timeout_seconds=2, script=script))
            except HostError as error:
                said.append(f"HostError {error}")
    return said

print(json.dumps(list(on_each(load(sys.argv[1]), visit))))
"""


def test_a_fact_that_cannot_be_read_is_no_answer(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "hosts.py").write_text(f"gpu = {pformat([(machine.name, machine.data())])}\n")
    line = [sys.executable, "-c", READ, str(tmp_path)]
    result = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False, timeout=30)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == [["HostError Said: no card", "HostError Said: no answer within 2 s", "0"]]


def test_the_command_shows_the_fleet(machine: Machine, tmp_path: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        line = [str(Path(sys.executable).with_name("gpurack")), "gpus", str(tmp_path), *arguments]
        return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)

    gone = {**machine.data(), "ssh_hostname": "127.0.0.1", "ssh_port": 1}
    hosts = [(machine.name, machine.data()), ("gone", gone)]
    (tmp_path / "hosts.py").write_text(f"gpu = {pformat(hosts)}\n")

    gpus.install(machine, "gpu-lost")
    shown = run("--limit", machine.name)
    assert shown.returncode == 0, shown.stdout + shown.stderr
    lines = shown.stdout.splitlines()
    assert len(lines) == 4 and all(line.startswith(machine.name) and "RTX A6000" in line for line in lines[1:])
    assert all(word in lines[1] for word in ("Ampere", "0.4/48 GiB", "550.163.01", "12.4", "44 °C", "22 W/300 W"))
    assert "GPU is lost" in lines[2] and "GPU is lost" in lines[3]

    gpus.install(machine, "not-loaded")
    shown = run()
    assert shown.returncode == 1
    assert "GeForce RTX 4090" in shown.stdout and "Driver Not Loaded" in shown.stdout
    assert "cannot be read" in next(line for line in shown.stdout.splitlines() if line.startswith("gone"))

    found = json.loads(run("--json").stdout)
    assert [(host["host"], bool(host["error"])) for host in found] == [(machine.name, False), ("gone", True)]
    assert found[0]["nvml"]["error"] == "Driver Not Loaded"

    gpus.install(machine, "none")
    assert "no NVIDIA card" in run("--limit", machine.name).stdout
    assert run("--limit", "nobody").returncode == 2
