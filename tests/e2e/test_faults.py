"""Every fault of the field: one line with host, step, cause and cure; other hosts go on; a rerun repairs."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from gpurack.lab import Machine
from tests.testbed.site import Run, Site

pytestmark = pytest.mark.host

SETTINGS: dict[str, dict[str, Any]] = {"base": {"apt_lock_timeout": 4, "packages": ["curl"]}}


@dataclass
class Pair:
    """Two hosts: one that works, and one that is broken."""

    good: Machine
    bad: Machine
    site: Site
    data: dict[str, Any] = field(default_factory=dict)

    def run(self) -> Run:
        return self.site.run("base", data={self.bad.name: self.data})


@pytest.fixture(scope="module")
def pair(machines: Callable[..., list[Machine]], site_for: Callable[..., Site]) -> Pair:
    good, bad = machines(2, release="trixie")
    site = site_for([good, bad], SETTINGS)
    assert site.run("base").ok
    return Pair(good, bad, site)


def assert_fault(pair: Pair, run: Run, step: str, cause: str) -> None:
    """Fail unless the broken host is explained in one line, the other host went on, and the exit code says so."""
    assert run.returncode == 1, run.output
    _, _, summary = run.output.partition("What went wrong")
    lines = [line.strip() for line in summary.splitlines() if line.strip().startswith(f"{pair.bad.name}: ")]
    assert len(lines) == 1, run.output
    assert re.match(rf"{pair.bad.name}: {step}.*: .*{cause}.*; \S+", lines[0]), lines[0]
    assert f"{pair.good.name}: " not in summary
    assert "Traceback" not in run.output
    assert pair.good.ssh("cat /etc/gpurack-canary", check=False).returncode != 0
    assert run.changed[pair.good.name] > 0, f"the other host did not go on:\n{run.output}"


@contextmanager
def undone(pair: Pair, break_it: str = "", mend: str = "") -> Iterator[None]:
    """Break one host, leave work to do on the other, and see a rerun repair both afterwards."""
    pair.good.ssh("rm -f /etc/sysctl.d/*gpurack*")
    if break_it:
        pair.bad.ssh(break_it)
    try:
        yield
    finally:
        pair.data = {}
        if mend:
            pair.bad.ssh(mend)
    repaired = pair.run()
    assert repaired.ok, repaired.output
    assert pair.run().changed == {pair.good.name: 0, pair.bad.name: 0}


def other_key(folder: Path) -> Path:
    key = folder / "other"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    return key


def test_unreachable_host(pair: Pair) -> None:
    with undone(pair):
        pair.data = {"ssh_hostname": pair.bad.address.rsplit(".", 1)[0] + ".250"}
        assert_fault(pair, pair.run(), "connect", "no SSH server answers at that address")


def test_no_ssh_server(pair: Pair) -> None:
    with undone(pair):
        pair.data = {"ssh_port": 2}
        assert_fault(pair, pair.run(), "connect", "no SSH server answers at that address and port")


def test_wrong_key(pair: Pair, tmp_path: Path) -> None:
    with undone(pair):
        pair.data = {"ssh_key": str(other_key(tmp_path))}
        assert_fault(pair, pair.run(), "connect", "neither this user nor this key")


def test_changed_host_key(pair: Pair, tmp_path: Path) -> None:
    known = tmp_path / "known_hosts"
    kind, public = other_key(tmp_path).with_suffix(".pub").read_text().split()[:2]
    known.write_text(f"{pair.bad.address} {kind} {public}\n")
    with undone(pair):
        pair.data = {"ssh_known_hosts_file": str(known)}
        assert_fault(pair, pair.run(), "connect", "is not the one in known_hosts")


def test_unknown_host_key(pair: Pair, tmp_path: Path) -> None:
    known = tmp_path / "known_hosts"
    known.touch()
    with undone(pair):
        pair.data = {"ssh_known_hosts_file": str(known)}
        assert_fault(pair, pair.run(), "connect", "is not in known_hosts")
    assert known.read_text() == ""


def test_sudo_that_needs_a_password(pair: Pair) -> None:
    ask = "for f in /etc/sudoers.d/*; do sed -i.asks 's/NOPASSWD://' $f; mv $f.asks /root/; done"
    # The lab's own way in is sudo, so the host mends itself.
    soon = "systemd-run --timer-property=AccuracySec=100ms --on-active=12"
    give_back = "for f in /root/*.asks; do cp $f /etc/sudoers.d/$(basename $f .asks); rm $f; done"
    mend = f"{soon} sh -c '{give_back}'"
    with undone(pair, f"{mend}; {ask}"):
        assert_fault(pair, pair.run(), "prepare", "sudo asks for a password")
        for _ in range(200):
            if pair.bad.ssh("true", check=False).returncode == 0:
                break
            time.sleep(0.1)


def test_unsupported_release(pair: Pair) -> None:
    os_release = "/etc/os-release"
    with undone(
        pair,
        f"cp --remove-destination $(readlink -f {os_release}) {os_release}; "
        f"""sed -i 's/^VERSION_ID=.*/VERSION_ID="10"/; s/^PRETTY_NAME=.*/PRETTY_NAME="Debian 10"/' {os_release}""",
        f"ln -sf ../usr/lib/os-release {os_release}",
    ):
        assert_fault(pair, pair.run(), "prepare", "Debian 10 is not supported")


HOLD_LOCK = r"""
systemd-run --unit=hold-lock perl -MFcntl -e '
  open(LOCK, ">>", "/var/lib/dpkg/lock-frontend") or die;
  $$record = pack("s s x4 q q i", F_WRLCK, 0, 0, 0, 0);
  fcntl(LOCK, F_SETLK, $$record) or die; sleep 900' && sleep 0.5 && systemctl is-active hold-lock
"""  # the doubled dollar sign is systemd-run's


def test_apt_lock_is_waited_for_and_then_named(pair: Pair) -> None:
    with undone(pair, f"apt-get -qy remove curl && {HOLD_LOCK}", "systemctl stop hold-lock"):
        assert_fault(pair, pair.run(), "Base", "another process holds the package manager's lock")


def test_no_route_to_the_package_mirror(pair: Pair) -> None:
    break_it = (
        "apt-get -qy remove curl && apt-get clean && rm -rf /var/lib/apt/lists/* && "
        "nft add table inet cut && nft add chain inet cut out '{ type filter hook output priority 0; }' && "
        "nft add rule inet cut out tcp dport '{ 80, 443, 3128 }' reject"
    )
    with undone(pair, break_it, "nft delete table inet cut"):
        assert_fault(pair, pair.run(), "Base", "no route to its package mirror")


def test_full_disk(machines: Callable[..., list[Machine]], pair: Pair, site_for: Callable[..., Site]) -> None:
    [small] = machines(1, release="trixie", disk_mib=600)
    site = site_for([pair.good, small], SETTINGS)
    assert site.run("base").ok
    full = Pair(pair.good, small, site)
    fill = "apt-get -qy remove curl; sync; dd if=/dev/zero of=/var/tmp/fill bs=64k; sync; true"
    with undone(full, fill, "rm -f /var/tmp/fill"):
        assert_fault(full, full.run(), "Base", "the disk is full")


def test_host_that_is_switched_off_in_the_middle(pair: Pair) -> None:
    pair.bad.ssh("apt-get -qy remove curl")
    pair.good.ssh("rm -f /etc/sysctl.d/*gpurack*")
    process = pair.site.start("base")
    lines = []
    for line in process.stdout:
        lines.append(line)
        if "Starting operation" in line and "ackages" in line:
            pair.bad.kill()
    process.wait()
    pair.bad.start()
    _, _, summary = "".join(lines).partition("What went wrong")
    assert re.search(rf"{pair.bad.name}: Base.*: the connection was lost", summary), "".join(lines)
    assert f"{pair.good.name}: " not in summary
    with undone(pair):
        pass


def test_client_that_is_killed(pair: Pair) -> None:
    """kill -9 in the middle of a run leaves a host that the next run completes."""
    with undone(pair, "apt-get -qy remove curl"):
        process = pair.site.start("base")
        for line in process.stdout:
            if "Starting operation" in line and "ackages" in line:
                break
        process.kill()
        process.wait()


def test_ssh_tools_are_here() -> None:
    assert shutil.which("ssh-keygen"), "openssh-client is one of LAB_PACKAGES in the Makefile"
