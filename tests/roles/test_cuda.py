"""The cuda role on real hosts of each supported release, with a double of NVIDIA's repository and of the driver.

Debian's own toolkit, some gigabytes, is chosen and refused here, and not downloaded.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.testbed import nvidia

pytestmark = pytest.mark.host

TOOLKIT = "12.4"


@pytest.fixture(scope="module")
def mirror(machine: Any, release: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Serve NVIDIA's CUDA repository; return the settings that name it."""
    folder = tmp_path_factory.mktemp("cuda")
    sha256 = nvidia.cuda_repository(folder, release, TOOLKIT)
    with nvidia.served(folder, machine) as url:
        yield {"source": "nvidia", "repository": url, "keyring_sha256": sha256}


@pytest.fixture(scope="module")
def site(machine: Any, site_for: Any, mirror: dict[str, str]) -> Any:
    """Return a site of one host with a card and a driver, on which the toolkit was installed."""
    site = site_for(machine, {"cuda": {"toolkit_version": TOOLKIT, **mirror}})
    assert changed(site.run("cuda"), machine) == 0, "a host without a card is none of the role's business"
    machine.pretend_cards(["2330"])
    installed_driver(machine, "550.163.01")
    first = site.run("cuda")
    assert first.ok, first.output
    return site


def changed(run: Any, machine: Any) -> int:
    """Return how many operations changed something in a run that must succeed."""
    assert run.ok, run.output
    return int(run.changed[machine.name])


def installed_driver(machine: Any, version: str) -> None:
    """Let dpkg have the driver's library in this version."""
    nvidia.put(machine, "/root/control", nvidia.control("libcuda1", f"{version}-1"))
    machine.ssh(
        "rm -rf /root/t; mkdir -p /root/t/DEBIAN; mv /root/control /root/t/DEBIAN/; dpkg-deb -b /root/t /root/t.deb"
    )
    machine.ssh("dpkg -i /root/t.deb")


def test_first_run_satisfies_every_control_and_second_changes_nothing(site: Any, machine: Any) -> None:
    site.assert_controls("cuda", machine)
    assert {result.status.value for result in site.results("cuda", machine)} == {"pass"}
    assert changed(site.run("cuda"), machine) == 0


def test_only_the_toolkit_is_taken_from_nvidia(site: Any, machine: Any) -> None:
    policy = machine.ssh("apt-cache policy nvidia-smi").stdout
    assert "999.99.99-1 100" in policy, policy
    assert "999.99.99" not in policy.partition("Version table")[0], policy


@pytest.mark.parametrize(
    ("breakage", "control", "changes"),
    [
        (f"apt-get -y remove cuda-toolkit-{TOOLKIT.replace('.', '-')}", "CUDA-01", 1),
        ("rm /etc/apt/preferences.d/gpurack-cuda /etc/apt/sources.list.d/gpurack-cuda.sources", None, 2),
        ("rm /etc/apt/keyrings/gpurack-nvidia.gpg", None, 1),
    ],
    ids=["removed", "sources", "key"],
)
def test_breakage_is_seen_and_repaired(
    site: Any, machine: Any, breakage: str, control: str | None, changes: int
) -> None:
    machine.ssh(breakage)
    assert site.failing("cuda", machine) == ({control} if control else set())
    assert changed(site.run("cuda"), machine) == changes
    site.assert_controls("cuda", machine)


def test_driver_too_old_is_refused_before_any_change(site: Any, machine: Any) -> None:
    installed_driver(machine, "535.261.03")
    assert site.failing("cuda", machine) == {"CUDA-02"}
    run = site.run("cuda")
    assert not run.ok and "CUDA 12.4 needs driver 550.54.14 or later, and the installed one is 535.261.03" in run.output
    assert "take CUDA 12.2" in run.output and run.operations[machine.name] == 0, run.output
    before = dict(site.settings["cuda"])
    site.settings["cuda"] = {**before, "minor_version_compatibility": True}
    assert changed(site.run("cuda"), machine) == 0
    site.assert_controls("cuda", machine)
    site.settings["cuda"] = before
    installed_driver(machine, "550.163.01")


def test_debian_has_one_toolkit(site: Any, machine: Any, release: str) -> None:
    before = dict(site.settings["cuda"])
    has = {"bookworm": "11.8", "trixie": "12.4"}[release]
    version = machine.ssh("apt-cache policy nvidia-cuda-toolkit | sed -n 's/.*Candidate: //p'").stdout
    assert has in version, version
    site.settings["cuda"] = {"toolkit_version": "12.1"}
    run = site.run("cuda")
    assert not run.ok and f"Debian {release} has CUDA {has}, not 12.1" in run.output, run.output
    site.settings["cuda"] = {"toolkit_version": has}
    dry = site.command("cuda", args=["--dry"])
    assert dry.returncode == 0 and "Install the toolkit" in dry.stdout + dry.stderr, dry.stdout + dry.stderr
    site.settings["cuda"] = before


def test_driver_that_this_run_installs_counts(site: Any, machine: Any, release: str) -> None:
    """On a bare host: the branch nvidia_driver is about to install is known before anything is."""
    machine.ssh("dpkg --purge libcuda1")
    site.settings["nvidia_driver"] = {}
    before = dict(site.settings["cuda"])
    site.settings["cuda"] = {**before, "toolkit_version": "13.0"}
    run = site.run("cuda")
    branch = {"bookworm": "535", "trixie": "550"}[release]
    assert not run.ok, run.output
    assert (
        f"CUDA 13.0 needs driver 580.65.06 or later, and the branch that nvidia_driver installs is {branch}"
        in run.output
    )
    site.settings["cuda"] = before
    del site.settings["nvidia_driver"]


def test_without_a_version_nothing_is_declared(site: Any, machine: Any) -> None:
    site.settings["cuda"] = {}
    assert changed(site.run("cuda"), machine) == 0
    assert {result.status.value for result in site.results("cuda", machine)} == {"not applicable"}
