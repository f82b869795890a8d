"""The sshd role on real hosts, and every way in which it could lock somebody out."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator

import paramiko
import pytest

from gpurack.lab import Machine
from tests.testbed.site import Site

pytestmark = pytest.mark.host

DROP_IN = "/etc/ssh/sshd_config.d/00-gpurack.conf"
PENDING = "/var/lib/gpurack/guard/sshd/pending"
LOCKS_OUT = {"DenyUsers": "admin"}
"""Valid for ``sshd -t`` and for the settings model, and nobody gets in: what only a fresh connection finds out."""

CUTS_OFF = {"ListenAddress": "127.0.0.1"}
"""As valid; no connection is accepted, so that the client goes on trying for seconds, in which it can be killed."""


class OldConnection:
    """A connection opened before a change, which must live through it."""

    def __init__(self, machine: Machine) -> None:
        self.client = paramiko.SSHClient()
        self.client.load_host_keys(str(machine.known_hosts))
        self.client.connect(
            machine.address,
            port=machine.port,
            username=machine.user,
            key_filename=str(machine.key),
            allow_agent=False,
            look_for_keys=False,
        )

    def run(self, command: str) -> str:
        """Run a command as root and return its output."""
        _, stdout, _ = self.client.exec_command(f"sudo -n sh -c '{command}'", timeout=10)
        return stdout.read().decode().strip()


@pytest.fixture(scope="module")
def site(machine: Machine, site_for: Callable[..., Site]) -> Site:
    made = site_for(machine, {"sshd": {"confirm_timeout": 10}})
    first = made.run("sshd")
    assert first.ok, first.output
    assert first.changed[machine.name], first.output
    return made


@pytest.fixture
def connection(site: Site, machine: Machine) -> Iterator[OldConnection]:
    old = OldConnection(machine)
    yield old
    old.client.close()


def reachable(machine: Machine) -> bool:
    return machine.ssh("true", check=False).returncode == 0


def start_locking_out(site: Site, machine: Machine, connection: OldConnection) -> subprocess.Popen[str]:
    """Start a run that locks everybody out, and return it while the change is on trial."""
    process = site.start("sshd")
    deadline = time.monotonic() + 30
    while not connection.run(f"cat {PENDING} 2>/dev/null"):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "the change was never applied"
    while reachable(machine):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "the change locks nobody out"
    return process


def test_second_run_changes_nothing_and_controls_hold(site: Site, machine: Machine) -> None:
    second = site.run("sshd")
    assert second.ok, second.output
    assert second.changed[machine.name] == 0, second.output
    site.assert_controls("sshd", machine)


@pytest.mark.parametrize(
    ("breakage", "controls"),
    [
        (f"rm {DROP_IN}", {"SSHD-02", "SSHD-05"}),
        ("sed -i /^Include/d /etc/ssh/sshd_config", {"SSHD-02", "SSHD-05"}),
        (
            f"sed -i -e /^PasswordAuthentication/s/no/yes/ -e /^AuthenticationMethods/d {DROP_IN};"
            "systemctl restart ssh",
            {"SSHD-02", "SSHD-03"},
        ),
        (
            f"sed -i -e /^PermitRootLogin/s/no/yes/ -e /^X11Forwarding/s/no/yes/ {DROP_IN}",
            {"SSHD-04", "SSHD-07"},
        ),
        (f"sed -i -e s/^MACs.*/MACs\\ hmac-sha1/ -e s/^MaxAuthTries.*// {DROP_IN}", {"SSHD-05", "SSHD-06"}),
        (f"echo Port 2222 >>{DROP_IN}", {"SSHD-08"}),
        (f"echo NoSuchKeyword yes >>{DROP_IN}", {"SSHD-01"}),
    ],
)
def test_breakage_is_found_and_repaired(site: Site, machine: Machine, breakage: str, controls: set[str]) -> None:
    machine.ssh(breakage)
    if "NoSuchKeyword" not in breakage:  # with which sshd -T says nothing at all
        assert controls <= site.failing("sshd", machine)
    else:
        assert machine.ssh("sshd -t", check=False).returncode != 0
    run = site.run("sshd")
    assert run.ok, run.output
    site.assert_controls("sshd", machine)


def test_change_takes_effect_and_open_connections_live_on(
    site: Site, machine: Machine, connection: OldConnection
) -> None:
    site.settings["sshd"]["max_sessions"] = 7
    run = site.run("sshd")
    assert run.ok, run.output
    assert connection.run("sshd -T | grep ^maxsessions") == "maxsessions 7"
    assert connection.run(f"ls {PENDING} {DROP_IN}.gpurack-old 2>/dev/null") == "", "the change is confirmed"
    assert connection.run("systemctl list-timers --all | grep gpurack-guard") == "", "the timer is gone"
    site.assert_controls("sshd", machine)


def test_lockout_is_taken_back(site: Site, machine: Machine, connection: OldConnection) -> None:
    before = machine.ssh(f"cat {DROP_IN}").stdout
    site.settings["sshd"]["extra"] = LOCKS_OUT
    try:
        run = site.run("sshd")
    finally:
        del site.settings["sshd"]["extra"]
    assert run.returncode != 0
    assert "a fresh connection failed" in run.output
    assert "they are taken back" in run.output
    assert machine.ssh(f"cat {DROP_IN}").stdout == before
    assert connection.run("id -u") == "0"
    site.assert_controls("sshd", machine)


def test_host_takes_change_back_by_itself_when_the_client_is_killed(
    site: Site, machine: Machine, connection: OldConnection
) -> None:
    before = machine.ssh(f"cat {DROP_IN}").stdout
    site.settings["sshd"]["extra"] = CUTS_OFF
    try:
        process = start_locking_out(site, machine, connection)
    finally:
        del site.settings["sshd"]["extra"]
    process.kill()
    process.wait()
    deadline = time.monotonic() + 15
    while not reachable(machine):
        assert time.monotonic() < deadline, "the host did not take the change back"
        time.sleep(0.5)
    assert machine.ssh(f"cat {DROP_IN}").stdout == before
    site.assert_controls("sshd", machine)


def test_power_cut_while_on_trial_takes_the_change_back(
    site: Site, machine: Machine, connection: OldConnection
) -> None:
    before = machine.ssh(f"cat {DROP_IN}").stdout
    site.settings["sshd"] |= {"extra": CUTS_OFF, "confirm_timeout": 600}
    try:
        process = start_locking_out(site, machine, connection)
    finally:
        del site.settings["sshd"]["extra"]
        site.settings["sshd"]["confirm_timeout"] = 10
    process.kill()
    process.wait()
    machine.kill()
    machine.start()
    assert machine.ssh(f"cat {DROP_IN}").stdout == before
    assert machine.ssh("journalctl -b -u gpurack-guard.service").stdout.count("the former files are back") == 1
    site.assert_controls("sshd", machine)
    again = site.run("sshd")
    assert again.ok, again.output
    assert again.changed[machine.name] == 0, again.output


def test_unconfirmed_change_is_found_and_settled_by_the_next_run(site: Site, machine: Machine) -> None:
    candidate = "/var/lib/gpurack/guard/sshd/candidate"
    machine.ssh(
        f"mkdir -p {candidate}; sed s/^MaxSessions.*/MaxSessions\\ 3/ {DROP_IN} >{candidate}/0; "
        f"gpurack-guard apply sshd 0badcafe 600s 644 true 'systemctl restart ssh' {DROP_IN}"
    )
    assert {"SSHD-06", "SSHD-09"} <= site.failing("sshd", machine)
    run = site.run("sshd")
    assert run.ok, run.output
    site.assert_controls("sshd", machine)
    assert "gpurack-guard" not in machine.ssh("systemctl list-timers --all").stdout


@pytest.mark.parametrize(
    ("settings", "code", "message"),
    [
        ({"allow_users": ["somebody"]}, 2, "would lock out admin"),
        ({"allow_groups": ["somebodies"]}, 1, "who is in no group of sshd.allow_groups"),
        ({"ports": [2222]}, 1, "gpurack is connected on port 22, which is not in sshd.ports"),
        ({"kex_algorithms": ["no-such-thing"]}, 1, "knows none of sshd.kex_algorithms"),
    ],
)
def test_foreseeable_lockout_is_refused_before_anything_changes(
    site: Site, machine: Machine, settings: dict[str, list[object]], code: int, message: str
) -> None:
    before = dict(site.settings["sshd"])
    site.settings["sshd"] |= settings
    try:
        run = site.run("sshd")
    finally:
        site.settings["sshd"] = before
    assert run.returncode == code, run.output
    assert message in run.output
    site.assert_controls("sshd", machine)
