"""The nvidia_driver role with packages from a directory: offline, upgrades, failures. The packages are doubles."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from gpurack import lab
from gpurack.lab import Machine
from tests.doubles.nvidia_packages.packages import make
from tests.testbed import packages
from tests.testbed.site import Run, Site

pytestmark = pytest.mark.host

FIRST, SECOND, BROKEN, THIRD = "550.163.01", "550.200.01", "550.201.01", "550.202.01"

MOKUTIL = """\
#!/bin/sh
# Double of mokutil: Secure Boot is on; the key is enrolled once /root/enrolled is there.
case $1 in
--sb-state) echo 'SecureBoot enabled' ;;
--test-key) [ -e /root/enrolled ] && echo "$2 is already enrolled" || echo "$2 is not enrolled" ;;
esac
"""


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    """A Debian 13 host that pretends to have a card."""
    [fresh] = lab.up([f"l{os.getpid()}"], release="trixie", owned=True, cards=["2684"])
    packages.seed(fresh)
    yield fresh
    lab.down([fresh])


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory with the packages on this machine."""
    return make(tmp_path_factory.mktemp("packages"), FIRST)


@pytest.fixture(scope="module")
def site(machine: Machine, directory: Path, site_for: Callable[..., Site]) -> Site:
    """Return a site of one host whose first run installed the packages of the directory."""
    settings: dict[str, Any] = {"source": "local", "local_directory": str(directory)}
    site = site_for(machine, {"nvidia_driver": settings, "docker": {}})
    first = site.run("nvidia_driver")
    assert first.ok, first.output
    return site


def provide(directory: Path, version: str, *, broken: bool = False) -> None:
    """Put packages of another version in place of those in the directory."""
    shutil.rmtree(directory)
    make(directory, version, broken=broken)


def changed(run: Run, machine: Machine) -> int:
    """Return how many operations changed something in a run that must succeed."""
    assert run.ok, run.output
    return run.changed[machine.name]


def installed(machine: Machine) -> set[str]:
    """Return NVIDIA's versions of the packages on the host."""
    names = "nvidia-kernel-dkms libnvidia-ml1 libcuda1 nvidia-smi nvidia-persistenced"
    lines = machine.ssh(f"dpkg-query -W -f '${{Version}}\\n' {names}").stdout.split()
    assert len(lines) == 5
    return {line.partition("-")[0] for line in lines}


def test_packages_of_a_directory_are_installed_and_second_run_changes_nothing(site: Site, machine: Machine) -> None:
    assert installed(machine) == {FIRST}
    site.assert_controls("nvidia_driver", machine)
    assert changed(site.run("nvidia_driver"), machine) == 0
    assert machine.ssh("ls /var/lib/gpurack/upload").stdout == ""


def test_removed_package_comes_back_without_any_mirror(site: Site, machine: Machine) -> None:
    machine.ssh("mkdir /root/sources; mv /etc/apt/sources.list.d/* /root/sources")
    machine.ssh("apt-get -y --allow-change-held-packages remove nvidia-smi")
    assert site.failing("nvidia_driver", machine) == {"NVDR-01"}
    assert changed(site.run("nvidia_driver"), machine) == 2  # installed, and held again
    site.assert_controls("nvidia_driver", machine)


@pytest.fixture(scope="module")
def containers(site: Site, machine: Machine) -> dict[str, str]:
    """Return name -> id of two running containers, of which one was given a card's device file."""
    machine.ssh("mv /root/sources/* /etc/apt/sources.list.d/ 2>/dev/null; true")
    assert site.run("docker").ok
    tree = "mkdir -p /root/image/bin && cp /bin/busybox /root/image/bin/sh 2>/dev/null"
    machine.ssh(
        f"apt-get -y install busybox-static >/dev/null && {tree} && tar -C /root/image -c . | docker import - box"
    )
    for name, device in (("gpu", "--device /dev/null:/dev/nvidia0"), ("other", "")):
        machine.ssh(f"docker run -d --name {name} {device} box sh -c 'while :; do sleep 1; done'")
    ids = machine.ssh("docker container inspect --format '{{.Id}}' gpu other").stdout.split()
    return dict(zip(("gpu", "other"), ids, strict=True))


def started(machine: Machine, name: str) -> str:
    """Return whether a container runs, and since when."""
    return machine.ssh(
        f"docker container inspect --format '{{{{.State.Running}}}} {{{{.State.StartedAt}}}}' {name}"
    ).stdout


def test_upgrade_stops_only_containers_with_gpus_and_starts_them_again(
    site: Site, machine: Machine, directory: Path, containers: dict[str, str]
) -> None:
    before = {name: started(machine, name) for name in containers}
    provide(directory, SECOND)
    assert changed(site.run("nvidia_driver"), machine) > 0
    assert installed(machine) == {SECOND}
    assert FIRST not in machine.ssh("dkms status").stdout
    assert started(machine, "other") == before["other"]
    assert started(machine, "gpu") != before["gpu"] and started(machine, "gpu").startswith("true")
    site.assert_controls("nvidia_driver", machine)
    assert changed(site.run("nvidia_driver"), machine) == 0


def test_module_that_does_not_compile_fails_the_step_and_the_next_version_repairs_it(
    site: Site, machine: Machine, directory: Path, containers: dict[str, str]
) -> None:
    provide(directory, BROKEN, broken=True)
    run = site.run("nvidia_driver")
    assert not run.ok
    assert "missing_function" in run.output, run.output
    assert "NVDR-03" in site.failing("nvidia_driver", machine)
    assert started(machine, "gpu").startswith("false")
    provide(directory, THIRD)
    assert changed(site.run("nvidia_driver"), machine) > 0
    assert installed(machine) == {THIRD}
    assert started(machine, "gpu").startswith("true")
    site.assert_controls("nvidia_driver", machine)
    assert changed(site.run("nvidia_driver"), machine) == 0


def test_mixed_versions_in_the_directory_are_refused(site: Site, machine: Machine, directory: Path) -> None:
    (directory / f"libcuda1_{THIRD}-1_amd64.deb").rename(directory / "libcuda1_550.1.1-1_amd64.deb")
    run = site.run("nvidia_driver")
    assert not run.ok
    assert "mixes versions" in run.output and "nothing was changed" in run.output, run.output
    provide(directory, THIRD)


def test_nvswitches_without_a_fabric_manager_are_refused(site: Site, machine: Machine) -> None:
    machine.pretend_cards(["2330"] * 8, nvswitches=4)
    run = site.run("nvidia_driver")
    assert not run.ok
    assert f"put the package nvidia-fabricmanager of version {THIRD} into" in run.output, run.output
    assert "NVDR-10" in site.failing("nvidia_driver", machine)
    machine.pretend_cards(["2684"])


def test_secure_boot_stops_the_run_until_the_key_is_enrolled(site: Site, machine: Machine) -> None:
    subprocess.run(
        [*machine.ssh_command(), "sudo tee /usr/local/bin/mokutil >/dev/null && sudo chmod 755 /usr/local/bin/mokutil"],
        input=MOKUTIL,
        text=True,
        check=True,
    )
    run = site.run("nvidia_driver")
    assert not run.ok
    assert "mokutil --import /var/lib/dkms/mok.pub" in run.output and "Enroll MOK" in run.output, run.output
    assert site.failing("nvidia_driver", machine) == {"NVDR-09"}
    machine.ssh("touch /root/enrolled")
    assert site.run("nvidia_driver").ok
    site.assert_controls("nvidia_driver", machine)
    machine.ssh("rm /usr/local/bin/mokutil")


@pytest.fixture
def mirror(machine: Machine, tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """Serve a folder to the host; return the folder and its URL as the host sees it."""
    address = machine.ssh("ip route show default").stdout.split()[2]
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer((address, 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield tmp_path, f"http://{address}:{server.server_port}"
        server.shutdown()


def test_nvidias_repository_is_trusted_by_its_pinned_key_alone(
    site: Site, machine: Machine, mirror: tuple[Path, str], tmp_path: Path
) -> None:
    """A Blackwell card on Debian takes NVIDIA's repository, from a mirror whose key package is forged."""
    folder, url = mirror
    place = folder / "debian13/x86_64"
    tree = tmp_path / "tree"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN/control").write_text(
        "Package: cuda-keyring\nVersion: 1.1-1\nArchitecture: all\nMaintainer: test <root@localhost>\n"
        "Description: forged\n"
    )
    key = tree / "usr/share/keyrings/cuda-archive-keyring.gpg"
    key.parent.mkdir(parents=True)
    key.write_text("forged")
    place.mkdir(parents=True)
    deb = place / "cuda-keyring_1.1-1_all.deb"
    subprocess.run(["dpkg-deb", "-Znone", "--build", str(tree), str(deb)], check=True, stdout=subprocess.DEVNULL)

    machine.pretend_cards(["2b85"])
    local = site.settings["nvidia_driver"]
    site.settings["nvidia_driver"] = {"repository": url}
    run = site.run("nvidia_driver")
    assert not run.ok
    assert "is too old for" in run.output and "NVIDIA's repository is used" in run.output, run.output
    assert "is not the pinned one" in run.output, run.output
    sources = "ls /etc/apt/keyrings/gpurack-nvidia.gpg /etc/apt/sources.list.d/gpurack-nvidia.sources"
    assert machine.ssh(sources, check=False).stdout == ""

    site.settings["nvidia_driver"]["keyring_sha256"] = hashlib.sha256(deb.read_bytes()).hexdigest()
    run = site.run("nvidia_driver")
    # The pinned file is in place, but signs nothing: apt refuses the repository before anything is installed.
    assert not run.ok and f"{url}/debian13/x86_64" in run.output, run.output
    assert machine.ssh("cat /etc/apt/keyrings/gpurack-nvidia.gpg").stdout == "forged"
    assert installed(machine) == {THIRD}

    machine.pretend_cards(["2684"])
    site.settings["nvidia_driver"] = local
    assert changed(site.run("nvidia_driver"), machine) == 1  # the source goes again
    assert changed(site.run("nvidia_driver"), machine) == 0
