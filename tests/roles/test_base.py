"""The base role on real hosts."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from gpurack.lab import Machine
from tests.testbed.site import Site

pytestmark = pytest.mark.host

SETTINGS: dict[str, Any] = {
    "hostname": "gpu1.example.org",
    "timezone": "Europe/Berlin",
    "ntp_servers": ["192.0.2.1"],
    "unattended_exclude": ["postgresql-"],
    "journal_max_size_mib": 100,
}

# Holds dpkg's lock the way dpkg does, for some seconds.
HOLD_LOCK = (
    'python3 -c \'import fcntl,time; f=open("/var/lib/dpkg/{lock}","w"); fcntl.lockf(f,fcntl.LOCK_EX); '
    'open("/run/lock-held","w"); time.sleep({seconds})\''
)


@pytest.fixture(scope="module")
def site(machine: Machine, site_for: Callable[..., Site]) -> Site:
    made = site_for(machine, {"base": dict(SETTINGS)})
    first = made.run("base")
    assert first.ok, first.output
    assert first.changed[machine.name], first.output
    return made


def test_second_run_changes_nothing_and_controls_hold(site: Site, machine: Machine) -> None:
    second = site.run("base")
    assert second.ok, second.output
    assert second.changed[machine.name] == 0, second.output
    site.assert_controls("base", machine)


@pytest.mark.parametrize(
    ("breakage", "controls"),
    [
        (
            "hostname elsewhere; sed -i /127.0.1.1/d /etc/hosts; ln -sf /usr/share/zoneinfo/Asia/Tokyo /etc/localtime;"
            "sed -i s/^pool.*// /etc/chrony/chrony.conf; systemctl disable --quiet --now chrony",
            {"BASE-01", "BASE-02", "BASE-03"},
        ),
        (
            "echo 'deb [trusted=yes] http://evil.example/debian x main' >/etc/apt/sources.list;"
            "rm /etc/apt/apt.conf.d/10gpurack; sed -i /nvidia/d /etc/apt/apt.conf.d/52gpurack-unattended-upgrades;"
            "systemctl disable --quiet --now apt-daily-upgrade.timer",
            {"BASE-05", "BASE-07", "BASE-08", "BASE-11"},
        ),
        (
            "cd /etc/systemd/journald.conf.d && sed -i s/^SystemMaxUse.*/SystemMaxUse=50G/ zz-gpurack-journald.conf;"
            "sysctl -qw net.core.somaxconn=128; rm /etc/sysctl.d/zz-gpurack-sysctl.conf;"
            "apt-get -qq remove curl >/dev/null 2>&1",
            {"BASE-06", "BASE-09", "BASE-10"},
        ),
        (
            "cp /usr/share/unattended-upgrades/50unattended-upgrades /etc/apt/apt.conf.d/52gpurack-unattended-upgrades",
            {"BASE-07", "BASE-08"},
        ),
    ],
)
def test_breakage_is_found_and_repaired(site: Site, machine: Machine, breakage: str, controls: set[str]) -> None:
    machine.ssh(breakage)
    assert controls <= site.failing("base", machine)
    run = site.run("base")
    assert run.ok, run.output
    site.assert_controls("base", machine)


def test_installation_that_was_cut_off_is_finished(site: Site, machine: Machine) -> None:
    machine.ssh("cd /var/cache/apt/archives && apt-get -qq download curl && dpkg --unpack curl_*.deb")
    assert site.failing("base", machine) == {"BASE-06"}
    run = site.run("base")
    assert run.ok, run.output
    site.assert_controls("base", machine)


@pytest.mark.parametrize("lock", ["lock-frontend", "lock"])
def test_held_lock_is_waited_for(site: Site, machine: Machine, lock: str) -> None:
    machine.ssh("apt-get -qq remove curl >/dev/null 2>&1; rm -f /run/lock-held")
    holder = threading.Thread(target=machine.ssh, args=(HOLD_LOCK.format(lock=lock, seconds=6),))
    holder.start()
    wait_for_lock(machine)
    run = site.run("base")
    holder.join()
    assert run.ok, run.output
    site.assert_controls("base", machine)


def test_lock_held_for_too_long_is_a_clear_error(site: Site, machine: Machine) -> None:
    machine.ssh("apt-get -qq remove curl >/dev/null 2>&1; rm -f /run/lock-held")
    holder = threading.Thread(target=machine.ssh, args=(HOLD_LOCK.format(lock="lock-frontend", seconds=12),))
    holder.start()
    wait_for_lock(machine)
    site.settings["base"]["apt_lock_timeout"] = 1
    try:
        run = site.run("base")
    finally:
        site.settings["base"] = dict(SETTINGS)
    assert run.returncode != 0
    assert "another process holds the package manager's lock" in run.output
    holder.join()
    repaired = site.run("base")
    assert repaired.ok, repaired.output
    site.assert_controls("base", machine)


def wait_for_lock(machine: Machine) -> None:
    deadline = time.monotonic() + 10
    while machine.ssh("test -e /run/lock-held", check=False).returncode:
        assert time.monotonic() < deadline, "the lock was never taken"


NAMES = ("nvidia-smi", "libnvidia-ml1", "linux-image-amd64", "docker.io", "containerd.io", "harmless")
REPOSITORY = r"""
set -e
rm -rf /srv/repo; mkdir -p /srv/repo; cd /srv/repo
for name in NAMES; do for version in 1 2; do
    mkdir -p d/DEBIAN
    printf 'Package: %s\nVersion: %s\nArchitecture: all\nMaintainer: x <x@example.org>\nDescription: x\n' \
        $name $version >d/DEBIAN/control
    dpkg-deb -Znone -b d ${name}_$version.deb >/dev/null
    [ $version = 1 ] || { cat d/DEBIAN/control; echo "Filename: ./${name}_2.deb"
        stat -c 'Size: %s' ${name}_2.deb; echo "SHA256: $(sha256sum <${name}_2.deb | cut -c 1-64)"; echo; } >>Packages
done; done
{ printf 'Origin: Debian\nLabel: Debian-Security\nSuite: stable-security\nCodename: RELEASE-security\n'
    printf 'Date: Sat, 01 Jan 2022 00:00:00 UTC\nSHA256:\n'
    echo " $(sha256sum <Packages | cut -c 1-64) $(stat -c %s Packages) Packages"; } >Release
dpkg -i *_1.deb >/dev/null
mv /etc/apt/sources.list.d/debian.sources /srv/
echo 'deb [trusted=yes] file:/srv/repo ./' >/etc/apt/sources.list.d/test.list
apt-get -qq update
"""


def test_security_updates_pass_by_driver_kernel_and_engine(site: Site, machine: Machine) -> None:
    """unattended-upgrade itself, given a security update of each: it takes the harmless one only."""
    machine.ssh(REPOSITORY.replace("NAMES", " ".join(NAMES)).replace("RELEASE", machine.release))
    offered = machine.ssh("apt list --upgradable 2>/dev/null").stdout
    assert all(f"{name}/" in offered for name in NAMES), "without the role every one of them would be upgraded"
    dry = machine.ssh("unattended-upgrade --dry-run --debug 2>&1", timeout=120).stdout
    upgraded = next(line for line in dry.splitlines() if line.startswith("Packages that will be upgraded:"))
    assert upgraded.split(":")[1].split() == ["harmless"], dry
    machine.ssh(
        f"mv /srv/debian.sources /etc/apt/sources.list.d/; rm /etc/apt/sources.list.d/test.list; dpkg --purge "
        f"{' '.join(NAMES)}"
    )
    site.assert_controls("base", machine)
