"""The test hosts themselves: they boot, they are real, and nothing of them is left."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gpurack import lab
from gpurack.lab import Machine, network
from gpurack.lab.machine import HOSTS

pytestmark = pytest.mark.host


def traces(name: str) -> list[str]:
    """Return everything on this machine that bears a host's name."""
    namespaces = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout.split()
    mounts = Path("/proc/mounts").read_text()
    commands = [_command(path) for path in Path("/proc").glob("[0-9]*/cmdline")]
    return [
        *(f"namespace {word}" for word in namespaces if word == network.namespace(name)),
        *(f"mount {line}" for line in mounts.splitlines() if f"{HOSTS}/{name}/" in line),
        *(f"process {command}" for command in commands if f"{HOSTS}/{name}" in command),
        *(f"cgroup {path}" for path in Path("/sys/fs/cgroup").glob(f"**/gpurack-{name}")),
        *([f"folder {HOSTS / name}"] if (HOSTS / name).exists() else []),
    ]


def _command(path: Path) -> str:
    try:
        return path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def test_host_is_a_running_debian(machine: Machine, release: str) -> None:
    assert machine.ssh("systemctl is-system-running --wait").stdout.strip() == "running"
    assert f"VERSION_CODENAME={release}" in machine.ssh("cat /etc/os-release").stdout
    assert machine.ssh("hostname").stdout.strip() == machine.name


def test_package_mirror_is_reached(machine: Machine) -> None:
    assert "Err:" not in machine.ssh("apt-get update", timeout=120).stdout


def test_reboot_and_power_cut_keep_the_disk(machine: Machine) -> None:
    machine.ssh("echo kept > /root/kept")
    machine.reboot()
    assert machine.ssh("cat /root/kept").stdout == "kept\n"
    machine.kill()
    assert not machine.running
    assert machine.ssh("true", check=False).returncode != 0
    machine.start()
    assert machine.ssh("cat /root/kept").stdout == "kept\n"


def test_hosts_reach_each_other_and_have_their_own_firewalls(machines: Callable[..., list[Machine]]) -> None:
    one, two = machines(2, release="trixie")
    assert one.ssh(f"ping -c 1 -W 2 {two.address}").returncode == 0
    two.ssh("nft add table ip t; nft add chain ip t in '{ type filter hook input priority 0; }'")
    two.ssh(f"nft add rule ip t in ip saddr {one.address} drop")
    assert one.ssh(f"ping -c 1 -W 1 {two.address}", check=False).returncode != 0
    assert one.ssh("nft list tables").stdout == ""
    assert one.ssh("cat /etc/machine-id").stdout != two.ssh("cat /etc/machine-id").stdout


def test_disk_can_be_small(machines: Callable[..., list[Machine]]) -> None:
    [small] = machines(1, release="bookworm", disk_mib=64)
    result = small.ssh("dd if=/dev/zero of=/root/fill bs=1M count=200", check=False)
    assert "No space left on device" in result.stderr


OWNER = """
import sys
from gpurack import lab
[machine] = lab.up([sys.argv[1]], owned=True)
print("up", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def owner() -> Iterator[tuple[str, subprocess.Popen[str]]]:
    name = f"orphan-{time.monotonic_ns() % 10**9}"
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    assert len(traces(name)) >= 3
    yield name, process
    process.kill()
    process.communicate()


@pytest.mark.parametrize("end", ["kill", "terminate", "exit"])
def test_nothing_is_left_when_the_owner_ends(owner: tuple[str, subprocess.Popen[str]], end: str) -> None:
    name, process = owner
    if end == "exit":
        process.communicate("")
    else:
        getattr(process, end)()
        process.wait()
    deadline = time.monotonic() + 20
    while traces(name) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert traces(name) == []


def test_hosts_come_up_in_the_lab_inventory_and_go(tmp_path: Path) -> None:
    name = f"cli-{time.monotonic_ns() % 10**9}"
    gpurack = str(Path(sys.executable).with_name("gpurack"))

    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([gpurack, *arguments], capture_output=True, text=True, check=False)

    try:
        result = command("lab", "up", name, "--release", "bookworm")
        assert result.returncode == 0, result.stderr
        assert name in command("lab", "list").stdout
        assert "bookworm" in command("lab", "ssh", name, "cat", "/etc/os-release").stdout
        assert name in command("check", "inventories/lab").stdout
        again = command("lab", "up", name)
        assert (again.returncode, again.stderr.count("\n")) == (2, 1)
        assert f"there is a host {name} already" in again.stderr
    finally:
        assert command("lab", "down", name).returncode == 0
    assert traces(name) == []
    assert name not in [machine.name for machine in lab.hosts()]
    missing = command("lab", "ssh", name)
    assert (missing.returncode, f"no lab host {name}" in missing.stderr) == (2, True)


ALONE = """
import sys
from gpurack import lab
from gpurack.lab import network
[machine] = lab.up([sys.argv[1]], owned=True)
machine.ssh("true")
lab.down([machine])
"""


def test_network_goes_with_the_last_host(tmp_path: Path) -> None:
    """In a lab of its own, beside that of the other tests; three processes at once are the first there."""
    environment = {
        **os.environ,
        "GPURACK_LAB_STATE": str(tmp_path),
        "GPURACK_LAB_PREFIX": "10.199.77",
        "GPURACK_LAB_BRIDGE": "gpurack-alone",
    }
    started = [subprocess.Popen([sys.executable, "-c", ALONE, f"alone{n}"], env=environment) for n in range(3)]
    assert [process.wait(60) for process in started] == [0, 0, 0]
    tables = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=True).stdout
    assert "gpurack_alone" not in tables
    assert not Path("/sys/class/net/gpurack-alone").exists()
    assert [path.name for path in tmp_path.iterdir()] in (["lock"], [])
