"""A file with secrets on a real host: the canary is in that file, and nowhere else on either side.

The literal command runs as verbosely as it can; processes of both sides are sampled throughout (those of the host are
this machine's too), then the host's files and everything the command printed or wrote here are searched.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyrage
import pytest

from gpurack.lab import Machine
from gpurack.secrets.stores import Store
from tests.testbed.site import ROOT, Site

pytestmark = pytest.mark.host

FIRST, SECOND = "canary-first-9d5e0b7c", "canary-second-41aa8f63"
DEST = "/etc/gpurack/door.env"
DEPLOY = f"""
from pyinfra.operations import files
from gpurack.operations import secretfile
from gpurack.secrets import Secret

files.directory(name="Make the directory", path="/etc/gpurack", mode="755")
value = Secret.stored("door").reveal()
secretfile.put(name="Put the secrets", dest="{DEST}", content=f"TOKEN='{{value}}'\\n", mode="640", group="adm")
"""
SAMPLER = (
    "while :; do cat /proc/[0-9]*/cmdline /proc/[0-9]*/comm 2>/dev/null | grep -a -o 'canary-[a-z]*-[0-9a-f]*' "
    ">>{found}; echo >>{rounds}; done"
)


@dataclass
class Door:
    """A host, and an inventory whose store holds the canary."""

    machine: Machine
    folder: Path
    work: Path

    def set(self, value: str) -> None:
        """Set the secret with the real command."""
        command = [str(Path(sys.executable).with_name("gpurack")), "secrets", "set", str(self.folder), "door"]
        subprocess.run(command, cwd=ROOT, input=value, text=True, check=True, capture_output=True)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the literal command with the deploy."""
        command = [str(Path(sys.executable).with_name("pyinfra")), str(self.folder), str(self.work / "door.py"), "-y"]
        return subprocess.run(
            [*command, *arguments], cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )


@pytest.fixture(scope="module")
def door(
    machines: Callable[..., list[Machine]],
    site_for: Callable[..., Site],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Door]:
    [machine] = machines(release="trixie")
    folder = site_for(machine, {}).inventory()
    work = tmp_path_factory.mktemp("door")
    (work / "door.py").write_text(DEPLOY)
    key = pyrage.x25519.Identity.generate()
    identity = work / "identity"
    identity.write_text(f"{key}\n")
    identity.chmod(0o600)
    (folder / "recipients.txt").write_text(f"{key.to_public()}\n")
    before = os.environ.get("GPURACK_IDENTITY")
    os.environ["GPURACK_IDENTITY"] = str(identity)
    yield Door(machine, folder, work)
    if before is None:
        del os.environ["GPURACK_IDENTITY"]
    else:
        os.environ["GPURACK_IDENTITY"] = before


def test_without_its_secret_nothing_is_connected_to(door: Door) -> None:
    """The deploy itself asks for it; a role's settings are resolved by preflight, see tests/unit/test_secrets.py."""
    run = door.run()
    assert run.returncode != 0 and "no such store; gpurack secrets generate" in run.stdout + run.stderr


def test_the_canary_is_nowhere_but_in_the_file(door: Door) -> None:
    found, rounds = door.work / "found", door.work / "rounds"
    found.touch()
    door.machine.ssh("touch /root/before")
    sampler = subprocess.Popen(["sh", "-c", SAMPLER.format(found=found, rounds=rounds)])
    outputs = []
    try:
        for value in (FIRST, SECOND):
            door.set(value)
            run = door.run("-vvv", "--debug", "--diff", "--debug-operations", "--debug-facts", "--dry")
            outputs.append(run.stdout + run.stderr)
            run = door.run("-vvv", "--debug", "--diff")
            assert run.returncode == 0, run.stdout + run.stderr
            outputs.append(run.stdout + run.stderr)
            assert door.machine.ssh(f"cat {DEST}").stdout == f"TOKEN='{value}'\n"
    finally:
        sampler.kill()
        sampler.wait()
    assert len(rounds.read_text()) > 20, "the processes were hardly looked at"
    assert found.read_text() == "", "a secret was in the arguments of a process"
    everything = "".join(outputs)
    assert "it holds secrets: not shown" in everything
    assert "canary-" not in everything
    assert door.machine.ssh(f"stat -c '%U:%G %a' {DEST}").stdout.strip() == "root:adm 640"
    where = "find / -xdev -type f -newer /root/before -print0 | xargs -0 grep -l -a canary-[fs]"
    assert door.machine.ssh(f"{where} || true").stdout.split() == [DEST], "a secret is in another file of the host"
    assert door.machine.ssh("ls -A /etc/gpurack /var/lib/gpurack/upload").stdout.split() == [
        *("/etc/gpurack:", "door.env", "/var/lib/gpurack/upload:")
    ]
    assert door.machine.ssh("stat -c %a /var/lib/gpurack/upload").stdout.strip() == "700"
    here = [path for folder in (door.folder, door.work) for path in folder.rglob("*") if path.is_file()]
    here += [ROOT / "pyinfra-debug.log"]
    assert not [path for path in here if path.exists() and b"canary-" in path.read_bytes()]
    assert Store(door.folder).value("door") == SECOND


def test_second_run_changes_nothing_and_a_difference_is_repaired(door: Door) -> None:
    again = door.run()
    assert f"[{door.machine.name}] Success" not in again.stdout + again.stderr, again.stderr
    for damage in (f"chmod 644 {DEST}", f"chown nobody {DEST}", f"echo >>{DEST}", f"ln -sf /etc/motd {DEST}"):
        door.machine.ssh(damage)
        run = door.run()
        assert run.returncode == 0, run.stderr
        assert f"[{door.machine.name}] Success" in run.stdout + run.stderr, run.stderr
        assert door.machine.ssh(f"cat {DEST}").stdout == f"TOKEN='{SECOND}'\n"
        assert door.machine.ssh(f"stat -c '%F %U:%G %a' {DEST}").stdout.strip() == "regular file root:adm 640"
    assert door.machine.ssh("cat /etc/motd").stdout.find("canary") == -1


def test_a_file_that_cannot_be_written_stays_as_it_is(door: Door) -> None:
    door.machine.ssh(f"rm {DEST} && mkdir -p {DEST}/sub")
    run = door.run()
    assert run.returncode == 1
    assert f"cannot write {DEST}, it is as before" in run.stdout + run.stderr
    assert door.machine.ssh("ls -A /var/lib/gpurack/upload /etc/gpurack").stdout.split() == [
        *("/etc/gpurack:", "door.env", "/var/lib/gpurack/upload:")
    ]
