"""The users role on real hosts: who gets in, and who no longer does."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gpurack.lab import Machine
from tests.testbed.site import Site

pytestmark = pytest.mark.host

HASH = "$6$gpurack$" + "a" * 86


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a key pair each for some people."""
    folder = tmp_path_factory.mktemp("keys")
    for person in ("alice", "carol", "bob"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", f"{person}@example.org", "-f", folder / person]
        subprocess.run(command, check=True)
    return folder


def public(keys: Path, person: str) -> str:
    return (keys / f"{person}.pub").read_text().strip()


def login(machine: Machine, keys: Path, person: str, command: str) -> subprocess.CompletedProcess[str]:
    """Run a command on the host as a person, with that person's key."""
    line = machine.ssh_command("-l", person, "-i", str(keys / person), "-o", "IdentitiesOnly=yes")
    line[line.index(str(machine.key))] = str(keys / person)
    line[-1] = machine.address
    return subprocess.run([*line, command], capture_output=True, text=True, check=False, timeout=30)


def make_bob(machine: Machine, keys: Path) -> None:
    """Give the later leaver everything a person gathers in the course of a job."""
    machine.ssh(
        "useradd --create-home --shell /bin/bash --groups sudo,adm bob && echo bob:secret | chpasswd && "
        f"mkdir -p ~bob/.ssh && echo '{public(keys, 'bob')}' | tee ~bob/.ssh/authorized_keys ~bob/.ssh/authorized_keys2"
        " && chown -R bob: ~bob/.ssh && mkdir -p /var/spool/cron/crontabs /var/lib/systemd/linger && "
        "echo '0 3 * * * true' >/var/spool/cron/crontabs/bob && touch /var/lib/systemd/linger/bob && "
        "printf 'bob ALL=NOPASSWD: ALL\\nadmin ALL=NOPASSWD: ALL\\n' >/etc/sudoers.d/team && "
        "chmod 440 /etc/sudoers.d/team"
    )


@pytest.fixture(scope="module")
def site(machine: Machine, keys: Path, site_for: Callable[..., Site]) -> Site:
    make_bob(machine, keys)
    session = subprocess.Popen(
        [*machine.ssh_command("-l", "bob", "-o", f"IdentityFile={keys / 'bob'}")[:-1], machine.address, "sleep 600"]
    )
    deadline = time.monotonic() + 15
    while machine.ssh("pgrep -xu bob sleep || grep -lq sleep /proc/[0-9]*/comm", check=False).returncode:
        assert time.monotonic() < deadline, "bob has no session"
    people = [
        {"name": "alice", "full_name": "Alice Ä.", "ssh_keys": [public(keys, "alice")], "groups": ["adm", "docker"]},
        {"name": "carol", "ssh_keys": [public(keys, "carol")], "sudo": "password", "password_hash": HASH},
    ]
    made = site_for(machine, {"users": {"administrators": people, "leavers": ["bob", "dave"]}})
    first = made.run("users")
    assert first.ok, first.output
    assert HASH not in first.output
    assert session.wait(10) != 0, "bob's session was ended"
    return made


def test_second_run_changes_nothing_and_controls_hold(site: Site, machine: Machine) -> None:
    second = site.run("users")
    assert second.ok, second.output
    assert second.changed[machine.name] == 0, second.output
    site.assert_controls("users", machine)


def test_administrators_get_in_with_their_rights(site: Site, machine: Machine, keys: Path) -> None:
    alice = login(machine, keys, "alice", "id -Gn; sudo -n id -u")
    assert alice.stdout.split() == ["alice", "adm", "docker", "0"], alice.stderr
    carol = login(machine, keys, "carol", "sudo -n id -u")
    assert "password is required" in carol.stderr
    assert machine.ssh("getent shadow carol").stdout.split(":")[1] == HASH


def test_leaver_is_out(site: Site, machine: Machine, keys: Path) -> None:
    assert login(machine, keys, "bob", "true").returncode != 0
    assert machine.ssh("cat /etc/sudoers.d/team").stdout == "admin ALL=NOPASSWD: ALL\n"
    assert machine.ssh("stat -c %U /home/bob").stdout == "bob\n", "the home is kept"
    assert machine.ssh("getent passwd dave", check=False).returncode != 0


@pytest.mark.parametrize(
    ("breakage", "controls"),
    [
        (
            "mkdir -p ~bob/.ssh; cp ~alice/.ssh/authorized_keys ~bob/.ssh/; usermod -e '' -s /bin/bash -G sudo bob;"
            "echo '0 3 * * * true' >/var/spool/cron/crontabs/bob; echo 'bob ALL=(ALL) ALL' >/etc/sudoers.d/again",
            {"USER-05", "USER-06", "USER-07"},
        ),
        ("setpriv --reuid bob --clear-groups sleep 600 >/dev/null 2>&1 </dev/null &", {"USER-06"}),
        ("echo bob:secret | chpasswd", {"USER-05"}),
        (
            "cat ~carol/.ssh/authorized_keys >>~alice/.ssh/authorized_keys; rm /etc/sudoers.d/50-gpurack;"
            "usermod -e 1 alice; echo alice:secret | chpasswd",
            {"USER-01", "USER-02", "USER-03", "USER-04"},
        ),
        (
            "cp ~alice/.ssh/authorized_keys ~alice/.ssh/authorized_keys2; chmod 755 ~alice/.ssh;"
            "usermod -aG sudo alice; echo carol ALL=NOPASSWD: ALL >>/etc/sudoers.d/50-gpurack; passwd -d carol",
            {"USER-02", "USER-03", "USER-04"},
        ),
        ("userdel -r carol 2>/dev/null; chown root: ~alice/.ssh/authorized_keys", {"USER-01", "USER-02"}),
        ("rm -r ~alice/.ssh; ln -s /root ~alice/.ssh; usermod -s /bin/sh alice", {"USER-01", "USER-02"}),
    ],
)
def test_breakage_is_found_and_repaired(
    site: Site, machine: Machine, keys: Path, breakage: str, controls: set[str]
) -> None:
    machine.ssh(breakage)
    assert controls <= site.failing("users", machine)
    run = site.run("users")
    assert run.ok, run.output
    site.assert_controls("users", machine)
    assert login(machine, keys, "alice", "sudo -n id -u").stdout == "0\n"
    assert machine.ssh("ls -A /root/authorized_keys", check=False).returncode != 0


def test_leavers_home_goes_when_asked(site: Site, machine: Machine) -> None:
    site.settings["users"]["remove_leavers_home"] = True
    assert site.failing("users", machine) == {"USER-07"}
    run = site.run("users")
    assert run.ok, run.output
    site.assert_controls("users", machine)
    assert machine.ssh("ls /home").stdout.split() == ["admin", "alice", "carol"]


@pytest.mark.parametrize(
    ("change", "data", "code", "message"),
    [
        ({"leavers": ["admin"]}, {}, 2, "gpurack connects as admin (ssh_user)"),
        (
            {"administrators": [{"name": "admin", "ssh_keys": ["ssh-ed25519 AAAA"]}]},
            {},
            2,
            "the text after ssh-ed25519 is not such a key",
        ),
        ({"leavers": ["games"]}, {}, 2, "this is a system account"),
        ({"leavers": ["systemd-network"]}, {}, 1, "a system account and not a leaver's"),
    ],
)
def test_own_access_and_system_accounts_are_refused_before_anything_changes(
    site: Site, machine: Machine, change: dict[str, Any], data: dict[str, Any], code: int, message: str
) -> None:
    before = dict(site.settings["users"])
    passwd = machine.ssh("cat /etc/passwd /etc/shadow").stdout
    site.settings["users"] |= change
    try:
        run = site.run("users", data={machine.name: data})
    finally:
        site.settings["users"] = before
    assert run.returncode == code, run.output
    assert message in run.output
    assert machine.ssh("cat /etc/passwd /etc/shadow").stdout == passwd


def test_administrator_with_another_key_than_the_one_connected_with_is_refused(
    site: Site, machine: Machine, keys: Path
) -> None:
    before = site.settings["users"]["administrators"]
    site.settings["users"]["administrators"] = [{"name": "admin", "ssh_keys": [public(keys, "alice")]}]
    run = site.run("users")
    assert run.returncode == 2, run.output
    assert "the key gpurack connects with as admin (ssh_key) is not among them" in run.output
    own = Path(f"{machine.key}.pub").read_text().strip()
    site.settings["users"]["administrators"] = [*before, {"name": "admin", "ssh_keys": [own]}]
    run = site.run("users")
    assert run.ok, run.output
    site.assert_controls("users", machine)
    site.settings["users"]["administrators"] = before
