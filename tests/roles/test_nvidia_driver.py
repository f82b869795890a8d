"""The nvidia_driver role with the distribution's real packages on real hosts: one DKMS build a release."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator

import pytest

from gpurack import lab
from gpurack.controls import Status
from gpurack.lab import Machine
from tests.testbed import packages
from tests.testbed.site import Run, Site

pytestmark = pytest.mark.host

RTX_4090 = "2684"
VERSION = {"bookworm": "535.", "trixie": "550.163.01"}
BUILD_SECONDS = 1500
"""A build takes two and a half minutes on two processors that nobody else uses."""

_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def machine(release: str) -> Iterator[Machine]:
    """A fresh host of each release that pretends to have a card; its packages need not be downloaded again."""
    [fresh] = lab.up([f"d{os.getpid()}-{next(_numbers)}"], release=release, owned=True, cards=[RTX_4090])
    packages.seed(fresh)
    yield fresh
    lab.down([fresh])


@pytest.fixture(scope="module")
def site(machine: Machine, site_for: Callable[..., Site]) -> Site:
    """Return a site of one host whose first run built the driver."""
    site = site_for(machine, {"nvidia_driver": {}})
    first = site.run("nvidia_driver", timeout=BUILD_SECONDS)
    assert first.ok, first.output
    packages.keep(machine)
    return site


def changed(run: Run, machine: Machine) -> int:
    """Return how many operations changed something in a run that must succeed."""
    assert run.ok, run.output
    return run.changed[machine.name]


def test_first_run_satisfies_every_control_and_second_changes_nothing(site: Site, machine: Machine) -> None:
    site.assert_controls("nvidia_driver", machine)
    assert changed(site.run("nvidia_driver"), machine) == 0


def test_only_what_needs_the_cards_is_left_unsaid(site: Site, machine: Machine) -> None:
    """In a container the kernel is not the host's: nothing else may hide behind that."""
    left = {r.control.id for r in site.results("nvidia_driver", machine) if r.status is Status.NOT_APPLICABLE}
    assert left == {"NVDR-09", "NVDR-10", "NVDR-11"}


def test_driver_is_the_releases_own(site: Site, machine: Machine, release: str) -> None:
    status = machine.ssh("dkms status").stdout
    assert f"nvidia-current/{VERSION[release]}" in status and ": installed" in status, status
    said = machine.ssh("nvidia-smi", check=False)
    assert "couldn't communicate with the NVIDIA driver" in said.stdout, said.stdout + said.stderr
    assert "xserver-xorg-core" not in machine.ssh("dpkg-query -W -f '${Package}\\n'").stdout.splitlines()


def test_every_package_of_the_driver_has_one_version(site: Site, machine: Machine, release: str) -> None:
    names = "nvidia-kernel-dkms nvidia-smi libnvidia-ml1 libcuda1 libnvidia-cfg1 firmware-nvidia-gsp nvidia-alternative"
    versions = machine.ssh(f"dpkg-query -W -f '${{Version}}\\n' {names}").stdout.split()
    assert len({version.partition("-")[0] for version in versions}) == 1, versions
    assert versions[0].startswith(VERSION[release])


BREAKAGES = {
    "hold removed": ("apt-mark unhold nvidia-smi", {"NVDR-08"}),
    "pin removed": ("rm /etc/apt/preferences.d/gpurack-nvidia-driver", {"NVDR-08"}),
    "blacklist removed": ("rm /etc/modprobe.d/gpurack-nouveau.conf", {"NVDR-05"}),
    "not loaded at boot": ("rm /etc/modules-load.d/gpurack-nvidia.conf", {"NVDR-07"}),
    "persistence disabled": ("systemctl disable nvidia-persistenced", {"NVDR-06"}),
    "headers no longer follow": ("apt-get -y remove linux-headers-amd64", {"NVDR-04"}),
    "tools removed": ("apt-get -y --allow-change-held-packages remove nvidia-smi", {"NVDR-01"}),
    "module taken out of the kernels": (
        "set -- $(dkms status | sed -n 's|^nvidia-current/\\([^,]*\\), \\([^,]*\\),.*|\\1 \\2|p'); "
        "dkms uninstall -m nvidia-current -v $1 -k $2",
        {"NVDR-02", "NVDR-03", "NVDR-12"},
    ),
}


@pytest.mark.parametrize(("breakage", "controls"), BREAKAGES.values(), ids=BREAKAGES)
def test_breakage_is_seen_and_repaired(site: Site, machine: Machine, breakage: str, controls: set[str]) -> None:
    machine.ssh(breakage, timeout=300)
    assert site.failing("nvidia_driver", machine) == controls
    assert changed(site.run("nvidia_driver"), machine) > 0
    site.assert_controls("nvidia_driver", machine)


def test_initial_ram_disk_older_than_the_blacklist_is_made_again(site: Site, machine: Machine) -> None:
    """A run that was cut off between the two leaves this."""
    if not machine.ssh("ls /boot/initrd.img-* 2>/dev/null", check=False).stdout:
        pytest.skip("no initial RAM disk: this release's headers bring no kernel")
    machine.ssh("touch /etc/modprobe.d/gpurack-nouveau.conf")
    assert site.failing("nvidia_driver", machine) == {"NVDR-05"}
    assert changed(site.run("nvidia_driver"), machine) == 1
    listed = machine.ssh("lsinitramfs /boot/initrd.img-* 2>/dev/null").stdout
    assert "etc/modprobe.d/gpurack-nouveau.conf" in listed
    site.assert_controls("nvidia_driver", machine)


def test_build_that_fails_says_what_the_compiler_said(site: Site, machine: Machine) -> None:
    version = machine.ssh("dpkg-query -W -f '${Version}' nvidia-smi").stdout.partition("-")[0]
    conf = f"/usr/src/nvidia-current-{version}/dkms.conf"
    broken = "echo nv-pci.c: error: too few arguments; false"
    built = "var/lib/dkms/nvidia-current usr/lib/modules/*/updates"
    machine.ssh(f"cd / && tar -cf /root/built.tar {built} && cp {conf} /root/dkms.conf", timeout=120)
    machine.ssh(f"dkms remove nvidia-current/{version} --all")
    machine.ssh(f"echo 'MAKE[0]=\"{broken}\"' >> {conf}")
    run = site.run("nvidia_driver")
    assert not run.ok
    assert "nv-pci.c: error: too few arguments" in run.output, run.output
    assert "DKMS did not build nvidia-current" in run.output, run.output
    assert "NVDR-03" in site.failing("nvidia_driver", machine)
    # What was built before is put back: a build takes minutes.
    machine.ssh(f"cp /root/dkms.conf {conf}; rm -rf /var/lib/dkms/nvidia-current; tar -C / -xf /root/built.tar")
    machine.ssh("for kernel in /usr/lib/modules/*/updates; do kernel=${kernel%/updates}; depmod ${kernel##*/}; done")
    site.assert_controls("nvidia_driver", machine)


def test_installation_that_was_cut_off_is_finished(site: Site, machine: Machine) -> None:
    machine.ssh("dpkg --force-depends --remove nvidia-modprobe")
    assert changed(site.run("nvidia_driver"), machine) > 0
    site.assert_controls("nvidia_driver", machine)
    assert changed(site.run("nvidia_driver"), machine) == 0


def test_wrong_cards_are_refused_before_anything_is_changed(site: Site, machine: Machine) -> None:
    """A Kepler card beside the other one; and a branch that Debian does not have."""
    machine.pretend_cards(["102d", RTX_4090])
    run = site.run("nvidia_driver")
    assert not run.ok
    assert "the last driver for Kepler is branch 470" in run.output, run.output
    assert "nothing was changed" in run.output
    machine.pretend_cards([RTX_4090])
    site.settings["nvidia_driver"] = {"source": "debian", "branch": "580"}
    run = site.run("nvidia_driver")
    assert not run.ok
    assert "has driver branch 5" in run.output and "nothing was changed" in run.output, run.output
    site.settings["nvidia_driver"] = {}


def test_version_that_no_source_has_is_refused_before_anything_is_changed(site: Site, machine: Machine) -> None:
    version = machine.ssh("dpkg-query -W -f '${Version}' nvidia-smi").stdout.partition("-")[0]
    site.settings["nvidia_driver"] = {"version": f"{version.partition('.')[0]}.999.99"}
    run = site.run("nvidia_driver")
    assert not run.ok
    assert f"have no driver {version.partition('.')[0]}.999.99; they have" in run.output, run.output
    assert machine.ssh("dpkg-query -W -f '${Version}' nvidia-smi").stdout.startswith(version)
    site.settings["nvidia_driver"] = {}
    assert changed(site.run("nvidia_driver"), machine) == 0


def test_host_without_a_card_is_left_alone(site: Site, machine: Machine) -> None:
    machine.pretend_cards([])
    run = site.run("nvidia_driver")
    assert run.ok and run.operations[machine.name] == 0, run.output
    assert {r.status for r in site.results("nvidia_driver", machine)} == {Status.NOT_APPLICABLE}
    machine.pretend_cards([RTX_4090])
