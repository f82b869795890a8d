"""gpurack doctor on a host that computes on its CPU: broken in many ways, each named first; looking changes nothing."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from gpurack.lab import Machine
from gpurack.lab.ollama_double import archive
from tests.testbed.doctor import (
    COMPOSE,
    CONTAINER,
    as_declared,
    differences,
    doctor,
    examine,
    forget_kernel_log,
    kernel_says,
    snapshot,
    with_environment,
    with_service,
)
from tests.testbed.site import Site

pytestmark = pytest.mark.host

SETTINGS = {
    "accelerator": "cpu",
    "images": {"archives": {"ollama": str(archive())}},
    "health_interval": "PT1S",
    "health_start_period": "PT0S",
    "ready_timeout": "PT40S",
}


@pytest.fixture(scope="module")
def host(machines: Callable[..., list[Machine]]) -> Machine:
    [machine] = machines(1, release="trixie", disk_mib=3000)
    return machine


@pytest.fixture(scope="module")
def site(host: Machine, site_for: Callable[..., Site]) -> Site:
    site = site_for(host, {"docker": {}, "ollama": dict(SETTINGS)})
    first = site.run("docker", "ollama")
    assert first.ok, first.output
    return site


@pytest.fixture(autouse=True)
def settings(site: Site) -> Any:
    """Leave the settings as they were."""
    before = dict(site.settings["ollama"])
    yield
    site.settings["ollama"] = before


def test_nothing_is_found_on_a_host_as_the_roles_left_it(site: Site) -> None:
    result = doctor(site)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "nothing found" in result.stdout
    report = examine(site)
    assert (report.returncode, report.host["cause"], report.host["examined"]) == (0, None, True)
    assert report.host["tests"]["ollama-silent"] == "ok" and report.host["tests"]["nouveau-loaded"] == "not applicable"


@pytest.mark.parametrize("accelerator", ["cpu", "nvidia"])
def test_looking_changes_nothing(site: Site, host: Machine, accelerator: str) -> None:
    # Without Docker's health check, which writes every time.
    with_service(host, wait=False, healthcheck={"disable": True})
    site.settings["ollama"] = {**SETTINGS, "accelerator": accelerator}
    examine(site)
    before = snapshot(host)
    examine(site)
    after = snapshot(host)
    as_declared(host)
    assert len(before["files"].splitlines()) > 5000 and "dockerd" in before["processes"]
    assert differences(before, after) == []


def test_looking_starts_no_stopped_docker(site: Site, host: Machine) -> None:
    """Its socket would: whoever asks a stopped Docker anything starts it."""
    host.ssh("systemctl stop docker.service; systemctl start docker.socket")
    report = examine(site)
    assert report.first["id"] == "docker-down"
    assert host.ssh("systemctl is-active docker.service", check=False).stdout.strip() == "inactive"
    host.ssh("systemctl start docker.service")


MODEL = {"name": "big:70b", "model": "big:70b", "digest": "0" * 64, "modified_at": "2025-01-01T00:00:00Z"}
GIN = '[GIN] 2026/11/24 - 14:00:00 | {} |  2m0.0s |  10.0.0.9 | POST     "/api/chat"'
KILLED = (
    "oom-kill:constraint=CONSTRAINT_NONE,nodemask=(null),cpuset=/,mems_allowed=0,global_oom,task=ollama,pid=77,uid=0",
    "Out of memory: Killed process 77 (ollama) total-vm:65536000kB, anon-rss:63000000kB, file-rss:0kB, shmem-rss:0kB",
)
DROP = "nft add table inet blocked; nft add chain inet blocked pre '{ type filter hook prerouting priority raw; }'; "

State = tuple[Callable[[Machine], object], Callable[[Machine], object], str, str | None, dict[str, Any]]


def shell(command: str) -> Callable[[Machine], object]:
    """Return a function that runs a command as root."""
    return lambda host: host.ssh(command, timeout=120)


def double(**values: str) -> Callable[[Machine], object]:
    """Return a function that has the double print or answer something."""
    return lambda host: with_environment(host, **values)


WIDE = {"publish_address": "0.0.0.0"}  # noqa: S104 - a setting
AGAIN = shell("systemctl start docker.service docker.socket")

# state: how it is made, how it is mended, the cause, the classic error, and what the inventory says besides
STATES: dict[str, State] = {
    "docker stopped": (shell("systemctl stop docker.socket docker.service"), AGAIN, "docker-down", None, {}),
    "docker does not start": (
        shell("cp /etc/docker/daemon.json /root; echo '{' > /etc/docker/daemon.json; systemctl restart docker || true"),
        shell(
            "cp /root/daemon.json /etc/docker/daemon.json; systemctl reset-failed docker.service docker.socket; "
            "systemctl restart docker"
        ),
        "docker-down",
        None,
        {},
    ),
    "container removed": (shell(f"docker rm --force {CONTAINER}"), as_declared, "ollama-down", None, {}),
    "container stopped": (shell(f"docker stop --time 1 {CONTAINER}"), as_declared, "ollama-down", None, {}),
    "container paused": (
        shell(f"docker pause {CONTAINER}"),
        shell(f"docker unpause {CONTAINER}"),
        "ollama-down",
        None,
        {},
    ),
    "container crashes": (
        lambda host: (with_service(host, command=["nonsense"], check=False, wait=False), host.ssh("sleep 5")),
        as_declared,
        "ollama-down",
        None,
        {},
    ),
    "port taken": (
        shell(
            f"docker stop --time 1 {CONTAINER}; docker run --detach --name thief --publish 127.0.0.1:11434:11434 "
            f"--entrypoint /bin/ollama ollama/ollama:0.32.15 serve; docker start {CONTAINER} || true"
        ),
        lambda host: (host.ssh("docker rm --force thief"), as_declared(host)),
        "ollama-down",
        None,
        {},
    ),
    "killed for want of memory": (
        lambda host: (host.ssh(f"docker kill {CONTAINER}"), kernel_says(host, *KILLED)),
        lambda host: (forget_kernel_log(host), as_declared(host)),
        "oom-killed",
        "OOM",
        {},
    ),
    "runner killed": (
        double(OLLAMA_DOUBLE_LOG='time=T level=ERROR msg="llama runner process has terminated: signal: killed"'),
        as_declared,
        "oom-killed",
        "OOM",
        {},
    ),
    "model refused for want of memory": (
        double(
            OLLAMA_DOUBLE_LOG='msg="model requires more system memory (47.1 GiB) than is available (22.3 GiB)"\n'
            + GIN.format(500)
        ),
        as_declared,
        "oom-killed",
        "OOM",
        {},
    ),
    "model larger than the memory": (
        double(OLLAMA_DOUBLE_MODELS=json.dumps([{**MODEL, "size": 10**14}])),
        as_declared,
        "model-too-large",
        None,
        {},
    ),
    "no model": (double(OLLAMA_DOUBLE_MODELS="[]"), as_declared, "no-model", None, {}),
    "requests fail": (double(OLLAMA_DOUBLE_LOG=GIN.format(500)), as_declared, "answers-fail", None, {}),
    "clients gave up": (double(OLLAMA_DOUBLE_LOG=GIN.format(499)), as_declared, "clients-gave-up", "TIMEOUT", {}),
    "OLLAMA_HOST is loopback": (
        lambda host: with_service(host, environment={"OLLAMA_HOST": "127.0.0.1:11434"}),
        as_declared,
        "ollama-host-wrong",
        "TIMEOUT",
        {},
    ),
    "OLLAMA_HOST has another port": (
        lambda host: with_service(host, environment={"OLLAMA_HOST": "0.0.0.0:8080"}),
        as_declared,
        "ollama-host-wrong",
        "TIMEOUT",
        {},
    ),
    "bound to this host alone": (shell("true"), shell("true"), "published-elsewhere", "TIMEOUT", WIDE),
    "published to everybody": (
        shell(
            f"sed 's/127.0.0.1:11434:11434/0.0.0.0:11434:11434/' {COMPOSE} > /root/wide.yaml; "
            "docker compose --file /root/wide.yaml --project-name ollama up --detach --wait --force-recreate"
        ),
        as_declared,
        "published-elsewhere",
        None,
        {},
    ),
    "server hangs": (
        # Stopped, not paused: the container runs, its port is open, and nothing is said.
        shell(f"kill -STOP $(docker inspect --format '{{{{.State.Pid}}}}' {CONTAINER})"),
        shell(f"kill -CONT $(docker inspect --format '{{{{.State.Pid}}}}' {CONTAINER})"),
        "ollama-silent",
        "TIMEOUT",
        {},
    ),
    "firewall drops the port": (
        shell(
            f"sed 's/127.0.0.1:11434:11434/0.0.0.0:11434:11434/' {COMPOSE} > /root/wide.yaml; "
            "docker compose --file /root/wide.yaml --project-name ollama up --detach --wait --force-recreate; "
            + DROP
            + "nft add rule inet blocked pre iifname host0 tcp dport 11434 drop"
        ),
        lambda host: (host.ssh("nft delete table inet blocked"), as_declared(host)),
        "port-unreachable",
        "TIMEOUT",
        WIDE,
    ),
    "models disk full": (
        shell(
            "mount -t tmpfs -o size=64m none /srv/ollama; "
            "dd if=/dev/zero of=/srv/ollama/blob bs=1M count=70 2>/dev/null || true"
        ),
        shell("umount /srv/ollama"),
        "disk-full",
        None,
        {},
    ),
    "disk full, and so the container does not start": (
        shell(
            f"docker rm --force {CONTAINER}; dd if=/dev/zero of=/root/filler bs=1M 2>/dev/null; "
            f"docker compose --file {COMPOSE} up --detach || true"
        ),
        lambda host: (host.ssh("rm /root/filler"), as_declared(host)),
        "disk-full",
        None,
        {},
    ),
    "disk almost full": (
        shell("fallocate -l $(( $(df --output=avail -B1 / | tail -1) - 150000000 )) /root/filler"),
        shell("rm /root/filler"),
        "disk-almost-full",
        None,
        {},
    ),
}


@pytest.mark.parametrize("name", STATES)
def test_the_cause_is_named_first(site: Site, host: Machine, name: str) -> None:
    make, mend, cause, error, settings = STATES[name]
    make(host)
    site.settings["ollama"] = {**SETTINGS, **settings}
    try:
        report = examine(site)
    finally:
        mend(host)
    assert report.returncode == 1, report.errors
    assert report.causes == [cause], [(item["id"], item["seen"]) for item in report.host["findings"]]
    assert (report.first["id"], report.first["error"]) == (cause, error)
    assert report.first["seen"] and report.first["cure"]


def test_nothing_is_left_of_the_broken_states(site: Site) -> None:
    report = examine(site)
    assert report.returncode == 0, report.host["findings"]


def test_the_report_is_for_people(site: Site, host: Machine) -> None:
    host.ssh(f"docker stop --time 1 {CONTAINER}")
    result = doctor(site)
    as_declared(host)
    assert result.returncode == 1
    lines = [line.strip() for line in result.stdout.splitlines()]
    assert lines[0].startswith(f"{host.name}: 1 finding, 1 consequence")
    assert lines[1].startswith("1. Ollama's container does not run")
    assert any(line.startswith("cure") and "deploys/ollama.py" in line for line in lines)


def test_a_host_that_cannot_be_examined_is_never_a_pass(site: Site, host: Machine) -> None:
    """Not root, or not there: exit code 2, and the reason."""
    folder = site.inventory()
    hosts = (folder / "hosts.py").read_text()
    for change, words in (("'_sudo': False", "no root rights"), ("'ssh_port': 1", "cannot be examined")):
        key = change.split(":")[0]
        old = next(part for part in ("'_sudo': True", "'ssh_port': 22") if part.startswith(key))
        (folder / "hosts.py").write_text(hosts.replace(old, change))
        result = subprocess.run(
            [".venv/bin/gpurack", "doctor", str(folder)], capture_output=True, text=True, timeout=60, check=False
        )
        assert result.returncode == 2, result.stdout
        assert words in result.stdout
    (folder / "hosts.py").write_text(hosts)


def test_wrong_names_and_wrong_inventories_are_refused(site: Site, host: Machine) -> None:
    assert doctor(site, "nobody").returncode == 2
    assert doctor(site, "--limit", "nobody").returncode == 2
    for chosen in (host.name, f"{host.name[:2]}*", "gpu"):
        assert len(json.loads(doctor(site, "--json", "--limit", chosen).stdout)["hosts"]) == 1
    site.settings["ollama"] = {**SETTINGS, "publish_port": "many"}
    result = doctor(site)
    assert result.returncode == 2 and "publish_port" in result.stderr
