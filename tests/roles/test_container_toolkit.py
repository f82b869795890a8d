"""The container_toolkit role on real hosts of each supported release, with doubles of NVIDIA's packages and driver.

The host sees a card on its PCI bus; packages come through apt from a signed repository; Docker is the real one. See
``tests/doubles/nvidia-container-toolkit``.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gpurack.lab.ollama_double import archive
from tests.testbed import nvidia

pytestmark = pytest.mark.host

IMAGE = "ollama/ollama:0.32.15"
DRIVER, NEXT_DRIVER = "550.163.01", "570.195.03"
OPEN = "open('/dev/nvidia0').close()"
ROLES = ("container_toolkit", "docker")


@pytest.fixture(scope="module")
def mirror(machine: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str, str]]:
    """Serve an apt repository of both versions of the toolkit; return its folder, URL and key's SHA-256."""
    folder = tmp_path_factory.mktemp("libnvidia-container")
    flat = folder / "stable/deb/amd64"
    debs = [deb for version in (nvidia.NEW, nvidia.OLD) for deb in nvidia.toolkit_debs(flat, version)]
    sha256 = nvidia.repository(folder, debs)
    with nvidia.served(folder, machine) as url:
        yield folder, url, sha256


@pytest.fixture(scope="module")
def site(machine: Any, site_for: Any, mirror: tuple[Path, str, str]) -> Any:
    """Return a site of one host with Docker, to which a card and its driver came later."""
    site = site_for(machine, {"docker": {}, "container_toolkit": {"enabled": False}})
    assert site.run("docker").ok
    _, url, sha256 = mirror
    site.settings["container_toolkit"] = {"repository": url, "repository_key_sha256": sha256}
    assert changed(site.run(*ROLES), machine) == 0, "a host without a card is none of the toolkit's business"
    assert site.results("container_toolkit", machine)[0].status == "not applicable"
    machine.pretend_cards(["2330"])
    nvidia.nvidia_smi(machine, nvidia.h100())
    nvidia.driver(machine, DRIVER)
    started = starts(machine)
    first = site.run(*ROLES)
    assert first.ok, first.output
    assert starts(machine) == started + 1, "Docker is told once"
    return site


def changed(run: Any, machine: Any) -> int:
    """Return how many operations changed something in a run that must succeed."""
    assert run.ok, run.output
    return int(run.changed[machine.name])


def starts(machine: Any) -> int:
    """Return how often the daemon was started in this boot."""
    text = machine.ssh(
        "journalctl --unit docker.service --boot --output cat | grep -c '^Started docker.service'", check=False
    )
    return int(text.stdout)


def cdi(release: str) -> bool:
    """Tell whether the release's engine knows CDI."""
    return release != "bookworm"


def test_first_run_satisfies_every_control_and_second_changes_nothing(site: Any, machine: Any) -> None:
    for role in ROLES:
        site.assert_controls(role, machine)
    started = starts(machine)
    assert changed(site.run(*ROLES), machine) == 0
    assert starts(machine) == started


def test_daemon_is_told_what_its_version_knows(site: Any, machine: Any, release: str) -> None:
    driver = machine.ssh("docker info --format '{{.CgroupDriver}}'").stdout.strip()
    runtimes = machine.ssh("docker info --format '{{json .Runtimes}}'").stdout
    assert (driver, "nvidia" in runtimes) == (("systemd", False) if cdi(release) else ("cgroupfs", True))


@pytest.fixture(scope="module")
def image(site: Any, machine: Any) -> str:
    """Load an image with Python and return its name."""
    site.settings["ollama"] = {
        "accelerator": "cpu",
        "images": {"archives": {"ollama": str(archive())}},
        "ready_timeout": "PT40S",
    }
    assert site.run("ollama").ok
    del site.settings["ollama"]
    machine.ssh("docker rm --force ollama-ollama-1")
    return IMAGE


def test_gpu_is_in_the_container_and_stays_when_systemd_reloads(machine: Any, image: str, release: str) -> None:
    """What NVIDIA/nvidia-docker#1671 is about, with a character device that a container may not open by itself."""
    if not cdi(release):
        pytest.skip("this engine knows no CDI; see the test of cgroupfs")
    python = f'docker run --rm --entrypoint python3 {{}} {image} -c "{OPEN}"'
    assert machine.ssh(python.format(""), check=False).returncode != 0
    machine.ssh(python.format("--device nvidia.com/gpu=all"))
    machine.ssh(python.format("--device nvidia.com/gpu=GPU-00000000-1111-2222-3333-444455556666"))
    machine.ssh(f"docker run --detach --name kept --device nvidia.com/gpu=0 {image}")
    machine.ssh("systemctl daemon-reload && sleep 1")
    machine.ssh(f'docker exec kept python3 -c "{OPEN}"')
    machine.ssh("docker rm --force kept")


def test_device_let_in_by_the_engine_stays_under_cgroupfs(machine: Any, image: str, release: str) -> None:
    if cdi(release):
        pytest.skip("CDI devices are tested here instead")
    machine.ssh(f"docker run --detach --name kept --device /dev/nvidia0 {image}")
    machine.ssh("systemctl daemon-reload && sleep 1")
    machine.ssh(f'docker exec kept python3 -c "{OPEN}"')
    machine.ssh("docker rm --force kept")


def test_container_that_could_lose_its_gpu_is_named(site: Any, machine: Any, image: str, release: str) -> None:
    """Made by hand with --gpus: under the cgroup driver systemd the next daemon-reload would take its GPU."""
    machine.ssh(f"docker run --detach --name by-hand --gpus all {image}")
    failing = site.failing("container_toolkit", machine)
    results = site.results("container_toolkit", machine)
    machine.ssh("docker rm --force by-hand")
    assert failing == ({"CTK-05"} if cdi(release) else set())
    if cdi(release):
        [message] = [result.message for result in results if result.control.id == "CTK-05"]
        assert message.startswith("by-hand: GPUs not given as CDI devices")


def test_containers_follow_to_the_other_cgroup_driver(site: Any, machine: Any, image: str, release: str) -> None:
    if cdi(release):
        pytest.skip("of engines without CDI")
    machine.ssh("sed -i /exec-opts/d /etc/docker/daemon.json && systemctl restart docker")
    machine.ssh(f"docker run --detach --name before {image}")
    cgroup = "cat /proc/$(docker inspect --format '{{.State.Pid}}' before)/cgroup"
    assert "docker-" in machine.ssh(cgroup).stdout
    assert changed(site.run(*ROLES), machine) == 1
    assert "/docker/" in machine.ssh(cgroup).stdout
    machine.ssh("docker rm --force before")
    site.assert_controls("container_toolkit", machine)


def test_ollama_gets_its_gpus_the_way_the_host_gives_them(site: Any, machine: Any, image: str) -> None:
    gpus = {
        "images": {"archives": {"ollama": str(archive())}},
        "health_interval": "PT1S",
        "ready_timeout": "PT40S",
        "spread": True,
    }
    for chosen in ({}, {"gpu_count": 1}, {"gpu_device_ids": ["0"]}):
        site.settings["ollama"] = {**gpus, **chosen}
        run = site.run("ollama")
        assert run.ok, run.output
        site.assert_controls("ollama", machine)
    assert changed(site.run(*ROLES, "ollama"), machine) == 0
    site.assert_controls("container_toolkit", machine)
    found = machine.ssh("docker inspect --format '{{json .Config.Env}}' ollama-ollama-1").stdout
    assert '"OLLAMA_SCHED_SPREAD=1"' in found
    site.settings["ollama"] = {**gpus, "gpu_count": 2}
    run = site.run("ollama")
    assert not run.ok and "the host has 1 NVIDIA cards" in run.output, run.output
    del site.settings["ollama"]
    machine.ssh("docker rm --force ollama-ollama-1")


BREAKAGES = {
    "removed": ("apt-get -y remove nvidia-container-toolkit", "CTK-01", True),
    "daemon-json": (
        "sed -i -e '/\"cdi\"/d' -e '/\"exec-opts\"/d' /etc/docker/daemon.json && systemctl restart docker",
        None,
        True,
    ),
    "config": (
        "sed -i 's/^#no-cgroups.*/no-cgroups = true/' /etc/nvidia-container-runtime/config.toml",
        "CTK-06",
        True,
    ),
    "config-gone": ("rm /etc/nvidia-container-runtime/config.toml", "CTK-06", True),
    "config-broken": ("echo '[[' >/etc/nvidia-container-runtime/config.toml", "CTK-06", True),
    "spec-gone": ("rm /etc/cdi/nvidia.yaml", "CTK-03", False),
    "spec-empty": (": >/etc/cdi/nvidia.yaml", "CTK-03", False),
    "second-spec": ("mkdir -p /var/run/cdi && cp /etc/cdi/nvidia.yaml /var/run/cdi/", "CTK-03", False),
    "unit-off": ("systemctl disable gpurack-cdi.service", "CTK-04", False),
    "path-stopped": ("systemctl stop gpurack-cdi.path", "CTK-04", False),
    "drop-in": ("rm -r /etc/systemd/system/docker.service.d && systemctl daemon-reload", "CTK-07", False),
    "after-docker": (
        "sed -i /^Before=/d /etc/systemd/system/gpurack-cdi.service; systemctl daemon-reload",
        "CTK-04",
        False,
    ),
}


@pytest.mark.parametrize("name", BREAKAGES)
def test_breakage_is_seen_and_repaired(site: Any, machine: Any, release: str, name: str) -> None:
    breakage, seen, everywhere = BREAKAGES[name]
    if not everywhere and not cdi(release):
        pytest.skip("of CDI, which this engine does not know")
    machine.ssh(breakage)
    assert (seen or ("CTK-02" if cdi(release) else "CTK-05")) in site.failing("container_toolkit", machine)
    assert changed(site.run(*ROLES), machine) > 0
    site.assert_controls("container_toolkit", machine)


def test_nothing_is_left_to_repair(site: Any, machine: Any) -> None:
    assert changed(site.run(*ROLES), machine) == 0


def test_spec_follows_the_driver(site: Any, machine: Any, release: str) -> None:
    if not cdi(release):
        pytest.skip("of CDI")
    nvidia.driver(machine, NEXT_DRIVER)
    assert site.failing("container_toolkit", machine) == {"CTK-03"}
    [result] = [r for r in site.results("container_toolkit", machine) if r.control.id == "CTK-03"]
    assert f"made for driver {DRIVER}, and {NEXT_DRIVER} is installed" in result.message
    assert changed(site.run(*ROLES), machine) == 1
    site.assert_controls("container_toolkit", machine)


def test_spec_follows_the_division_of_gpus(site: Any, machine: Any, image: str, release: str) -> None:
    """In the same run, and after the next boot: a service may name a MIG device at once."""
    if not cdi(release):
        pytest.skip("of CDI")
    site.settings["mig"] = {"layouts": [{"gpu": "all", "profiles": {"3g.40gb": 2}}]}
    assert changed(site.run("mig", *ROLES), machine) == 3
    device = machine.ssh("nvidia-smi -L | sed -n 's/.*(UUID: \\(MIG-[^)]*\\)).*/\\1/p' | head -n 1").stdout.strip()
    machine.ssh(f'docker run --rm --entrypoint python3 --device nvidia.com/gpu={device} {image} -c "{OPEN}"')
    site.assert_controls("container_toolkit", machine)
    site.settings["mig"] = {"layouts": [{"gpu": "all"}]}
    assert changed(site.run("mig", *ROLES), machine) == 3
    assert "MIG-" not in machine.ssh("cat /etc/cdi/nvidia.yaml").stdout
    site.assert_controls("container_toolkit", machine)
    del site.settings["mig"]


def test_spec_follows_a_driver_update_by_itself(site: Any, machine: Any, release: str) -> None:
    """As unattended-upgrades brings it: DKMS writes modules.dep, the path unit sees it."""
    if not cdi(release):
        pytest.skip("of CDI")
    modules = "/lib/modules/$(uname -r)"
    machine.ssh(f"mkdir -p {modules} && touch {modules}/modules.dep && systemctl restart gpurack-cdi.path")
    nvidia.driver(machine, DRIVER)
    seen = f"for i in $(seq 50); do grep -q {DRIVER} /etc/cdi/nvidia.yaml && exit 0; sleep 0.2; done; exit 1"
    machine.ssh(f"echo changed >>{modules}/modules.dep; {seen}")
    site.assert_controls("container_toolkit", machine)
    assert changed(site.run(*ROLES), machine) == 0


def test_driver_that_waits_for_a_reboot_is_no_error(site: Any, machine: Any, release: str) -> None:
    if not cdi(release):
        pytest.skip("of CDI")
    machine.ssh("mv /var/lib/nvidia-double/driver /root/ && rm /etc/cdi/nvidia.yaml")
    run = site.run(*ROLES)
    assert changed(run, machine) == 0
    assert "Driver Not Loaded" in run.output, run.output
    assert site.failing("container_toolkit", machine) == {"CTK-03"}
    machine.ssh("mv /root/driver /var/lib/nvidia-double/")
    assert changed(site.run(*ROLES), machine) == 1


def test_version_is_pinned_and_held(site: Any, machine: Any) -> None:
    before = dict(site.settings["container_toolkit"])
    site.settings["container_toolkit"] = {**before, "version": nvidia.OLD}
    assert changed(site.run(*ROLES), machine) >= 1
    site.assert_controls("container_toolkit", machine)
    assert nvidia.OLD in machine.ssh("dpkg-query -W nvidia-container-toolkit").stdout
    assert "nvidia" not in machine.ssh("apt-get --simulate dist-upgrade | grep ^Inst || true").stdout
    assert changed(site.run(*ROLES), machine) == 0
    machine.ssh("apt-mark unhold libnvidia-container1")
    assert site.failing("container_toolkit", machine) == {"CTK-01"}
    assert changed(site.run(*ROLES), machine) == 1
    site.settings["container_toolkit"] = before
    assert changed(site.run(*ROLES), machine) == 1, "released"
    assert machine.ssh("apt-mark showhold").stdout == ""


def test_packages_from_a_directory(site: Any, machine: Any, mirror: tuple[Path, str, str], tmp_path: Path) -> None:
    """For hosts without a way to NVIDIA: one version's files from the control machine, held there."""
    for deb in (mirror[0] / "stable/deb/amd64").glob(f"*_{nvidia.NEW}_amd64.deb"):
        shutil.copy(deb, tmp_path)
    machine.ssh("rm /etc/apt/sources.list.d/nvidia-container-toolkit.sources")
    before = dict(site.settings["container_toolkit"])
    site.settings["container_toolkit"] = {"source": "directory", "directory": str(tmp_path)}
    assert changed(site.run(*ROLES), machine) >= 1
    site.assert_controls("container_toolkit", machine)
    assert nvidia.NEW in machine.ssh("dpkg-query -W nvidia-container-toolkit").stdout
    assert machine.ssh("ls /var/lib/gpurack/upload").stdout == ""
    assert changed(site.run(*ROLES), machine) == 0
    next(tmp_path.glob("libnvidia-container1_*")).unlink()
    run = site.run(*ROLES)
    assert not run.ok and "expected one file libnvidia-container1_" in run.output, run.output
    site.settings["container_toolkit"] = before
    assert changed(site.run(*ROLES), machine) > 0


def test_cdi_is_refused_where_the_engine_does_not_know_it(site: Any, machine: Any, release: str) -> None:
    before = dict(site.settings["container_toolkit"])
    site.settings["container_toolkit"] = {**before, "mode": "cdi"}
    run = site.run(*ROLES)
    site.settings["container_toolkit"] = before
    assert run.ok is cdi(release)
    if not cdi(release):
        assert 'take Docker\'s own packages with docker.source = "docker"' in run.output, run.output
        assert run.operations[machine.name] == 0, "nothing was changed"


def test_runtime_may_be_chosen_and_given_up(site: Any, machine: Any, release: str) -> None:
    if not cdi(release):
        pytest.skip("it is the only way here")
    before = dict(site.settings["container_toolkit"])
    for mode, driver in (("runtime", "cgroupfs"), ("auto", "systemd")):
        site.settings["container_toolkit"] = {**before, "mode": mode}
        assert changed(site.run(*ROLES), machine) == 1
        site.assert_controls("container_toolkit", machine)
        assert machine.ssh("docker info --format '{{.CgroupDriver}}'").stdout.strip() == driver
    assert changed(site.run(*ROLES), machine) == 0


def test_only_the_pinned_signing_key_is_put_in_place(site: Any, machine: Any) -> None:
    before = dict(site.settings["container_toolkit"])
    machine.ssh("rm /etc/apt/keyrings/nvidia-container-toolkit.asc")
    site.settings["container_toolkit"] = {**before, "repository_key_sha256": "0" * 64}
    run = site.run(*ROLES)
    site.settings["container_toolkit"] = before
    assert not run.ok and "is not the pinned one" in run.output, run.output
    assert changed(site.run(*ROLES), machine) == 1


def test_containers_with_gpus_come_back_after_a_reboot(site: Any, machine: Any, image: str, release: str) -> None:
    """They find their device, of the driver that came with the reboot. Who is not to run again stays down."""
    if cdi(release):
        gpu = f"--device nvidia.com/gpu=all {image}"
        machine.ssh(f"docker run --detach --restart always --name boots {gpu}")
        machine.ssh(
            f"docker run --detach --restart unless-stopped --name stopped {gpu} && docker stop --time 1 stopped"
        )
        machine.ssh(f"docker run --detach --name once {gpu}")
    nvidia.driver(machine, NEXT_DRIVER)
    machine.reboot()
    machine.ssh("systemctl is-system-running --wait", check=False)
    if cdi(release):
        assert NEXT_DRIVER in machine.ssh("cat /etc/cdi/nvidia.yaml").stdout
        state = machine.ssh("docker inspect --format '{{.State.Status}} {{.State.Error}}' boots").stdout.strip()
        assert state == "running", state + machine.ssh("journalctl -b -o short-precise -u docker -u gpurack-cdi").stdout
        others = machine.ssh("docker inspect --format '{{.State.Status}}' stopped once").stdout.split()
        assert others == ["exited", "exited"]
        machine.ssh("docker rm --force boots stopped once")
    site.assert_controls("container_toolkit", machine)
    assert changed(site.run(*ROLES), machine) == 0
