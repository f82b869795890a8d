"""The docker role on real hosts of each supported release."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from tests.testbed.site import ANSI

pytestmark = pytest.mark.host

DAEMON_JSON = "/etc/docker/daemon.json"


@pytest.fixture(scope="module")
def site(machine: Any, site_for: Any) -> Any:
    """Return a site of one host whose first run brought up the engine."""
    site = site_for(machine, {"docker": {}})
    first = site.run("docker")
    assert first.ok, first.output
    return site


def changed(run: Any, machine: Any) -> int:
    """Return how many operations changed something in a run that must succeed."""
    assert run.ok, run.output
    return int(run.changed[machine.name])


def started_at(machine: Any) -> str:
    """Return when the running daemon was started."""
    return machine.ssh("systemctl show docker.service --property ExecMainStartTimestampMonotonic").stdout


def test_first_run_satisfies_every_control_and_second_changes_nothing(site: Any, machine: Any) -> None:
    site.assert_controls("docker", machine)
    before = started_at(machine)
    assert changed(site.run("docker"), machine) == 0
    assert started_at(machine) == before


def test_compose_2_is_the_only_package_from_another_release(machine: Any, site: Any, release: str) -> None:
    assert machine.ssh("docker compose version --short").stdout.startswith("2.")
    origin = machine.ssh("apt-cache policy docker-compose docker.io").stdout
    assert "-10" in origin if release == "bookworm" else "trixie" in origin
    foreign = machine.ssh("dpkg-query -W -f '${Package} ${Version}\\n' libc6 docker.io containerd runc").stdout
    assert ("deb12" in foreign) is (release == "bookworm"), foreign
    # No package of the host would be replaced by one of another release.
    simulated = machine.ssh("apt-get --simulate dist-upgrade").stdout
    assert "trixie" not in simulated or release == "trixie", simulated


@pytest.mark.parametrize(
    ("breakage", "control"),
    [
        ("systemctl stop docker.socket docker.service", "DOCK-01"),
        ("systemctl disable docker.service", "DOCK-01"),
        ('sed -i \'s/"max-size": "50m"/"max-size": "50g"/\' /etc/docker/daemon.json', "DOCK-03"),
        ('sed -i \'s/"live-restore": true/"live-restore": false/\' /etc/docker/daemon.json', "DOCK-04"),
        ("chmod 666 /etc/docker/daemon.json", "DOCK-06"),
        ("rm /etc/docker/daemon.json && systemctl restart docker", "DOCK-03"),
        ("echo '{broken' > /etc/docker/daemon.json", "DOCK-08"),
        (
            'sed -i \'s/^{/{"insecure-registries": ["10.0.0.1:5000"],/\' /etc/docker/daemon.json',
            "DOCK-08",
        ),
    ],
    ids=["stopped", "disabled", "logs", "live-restore", "writable", "deleted", "not-json", "insecure"],
)
def test_breakage_is_seen_and_repaired(site: Any, machine: Any, breakage: str, control: str) -> None:
    machine.ssh(breakage)
    assert control in site.failing("docker", machine)
    assert changed(site.run("docker"), machine) > 0
    site.assert_controls("docker", machine)


def test_nothing_is_left_to_repair(site: Any, machine: Any) -> None:
    assert changed(site.run("docker"), machine) == 0


def test_removed_package_is_installed_again(site: Any, machine: Any) -> None:
    machine.ssh("DEBIAN_FRONTEND=noninteractive apt-get -y remove docker-compose", timeout=120)
    assert site.failing("docker", machine) == {"DOCK-02"}
    assert changed(site.run("docker"), machine) == 1
    site.assert_controls("docker", machine)


def test_changed_log_bounds_mirrors_and_pools_come_into_force(site: Any, machine: Any) -> None:
    site.settings["docker"] = {
        "log_driver": "json-file",
        "log_max_size_mib": 7,
        "registry_mirrors": ["https://mirror.example.org"],
        "address_pools": [{"base": "10.201.0.0/16", "size": 24}],
    }
    assert changed(site.run("docker"), machine) == 1
    site.assert_controls("docker", machine)
    machine.ssh("docker network create probe")
    network = json.loads(machine.ssh("docker network inspect probe").stdout)[0]
    machine.ssh("docker network rm probe")
    assert network["IPAM"]["Config"][0]["Subnet"].startswith("10.201.")
    assert changed(site.run("docker"), machine) == 0


def test_configuration_dockerd_refuses_leaves_the_old_one_in_force(site: Any, machine: Any) -> None:
    """dockerd itself refuses a data root that cannot be made, only once it starts: the old file comes back."""
    good, before = machine.ssh(f"cat {DAEMON_JSON}").stdout, dict(site.settings["docker"])
    site.settings["docker"] = {**before, "data_root": "/proc/nowhere"}
    run = site.run("docker")
    assert not run.ok
    assert "the old one is put back" in run.output, run.output
    assert machine.ssh(f"cat {DAEMON_JSON}").stdout == good
    site.settings["docker"] = before
    site.assert_controls("docker", machine)
    assert changed(site.run("docker"), machine) == 0


def test_moved_data_root_comes_into_force(site: Any, machine: Any) -> None:
    site.settings["docker"] = {"data_root": "/var/lib/docker/moved"}
    assert changed(site.run("docker"), machine) == 1
    site.assert_controls("docker", machine)
    assert changed(site.run("docker"), machine) == 0


def test_engine_comes_back_after_a_reboot(site: Any, machine: Any) -> None:
    machine.reboot()
    machine.ssh("systemctl is-system-running --wait", check=False)
    site.assert_controls("docker", machine)
    assert changed(site.run("docker"), machine) == 0


def test_dry_run_changes_nothing(site: Any, machine: Any) -> None:
    before = machine.ssh(f"cat {DAEMON_JSON}").stdout
    site.settings["docker"] = {**site.settings["docker"], "log_max_files": 9}
    run = site.command("docker", args=["--dry", "--diff"])
    output = ANSI.sub("", run.stdout + run.stderr)
    assert run.returncode == 0, output
    assert '+     "max-file": "9",' in output, output
    assert machine.ssh(f"cat {DAEMON_JSON}").stdout == before


@pytest.fixture
def mirror(machine: Any, tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """Serve a folder to the host; return the folder and its URL as the host sees it."""
    address = machine.ssh("ip route show default").stdout.split()[2]
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer((address, 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield tmp_path, f"http://{address}:{server.server_port}"
        server.shutdown()


def test_only_the_pinned_signing_key_is_put_in_place(site: Any, machine: Any, mirror: tuple[Path, str]) -> None:
    """Docker's own repository, from a mirror: a forged key stops the run before apt ever sees it."""
    folder, url = mirror
    (folder / "debian").mkdir()
    (folder / "debian/gpg").write_text("forged")
    site.settings["docker"] = {"source": "docker", "repository": url}
    run = site.run("docker")
    assert not run.ok
    assert "is not the pinned one" in run.output, run.output
    assert machine.ssh("ls /etc/apt/keyrings", check=False).stdout.strip() == ""
    assert machine.ssh("ls /etc/apt/sources.list.d/docker.sources", check=False).returncode != 0

    site.settings["docker"]["repository_key_sha256"] = hashlib.sha256(b"forged").hexdigest()
    run = site.run("docker")
    assert machine.ssh("cat /etc/apt/keyrings/docker.asc").stdout == "forged"
    # The pinned file is in place, but signs nothing: apt refuses the repository.
    assert not run.ok
    assert f"{url}/debian" in run.output, run.output
