"""Controls of the docker role."""

from __future__ import annotations

import json
import re
from typing import Any

from gpurack.controls import NotApplicable, control
from roles.docker.settings import DockerSettings

DAEMON_JSON = "/etc/docker/daemon.json"


def _info(host: Any) -> dict[str, Any]:
    answer = host.run("docker info --format '{{json .}}'")
    assert answer.rc == 0, f"the daemon does not answer: {answer.stderr.strip()}"
    info: dict[str, Any] = json.loads(answer.stdout)
    errors = info.get("ServerErrors")
    assert not errors, f"the daemon does not answer: {' '.join(errors or [])}"
    return info


def _config(host: Any) -> dict[str, Any]:
    file = host.file(DAEMON_JSON)
    assert file.exists, f"{DAEMON_JSON} is missing"
    try:
        config: dict[str, Any] = json.loads(file.content_string)
    except ValueError as error:
        raise AssertionError(f"{DAEMON_JSON} is not JSON: {error}") from None
    return config


def _expect(where: str, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    wrong = [f"{key} is {found.get(key)!r}, not {value!r}" for key, value in wanted.items() if found.get(key) != value]
    assert not wrong, f"{where}: {'; '.join(wrong)}"


@control("DOCK-01", "The engine runs and starts at boot", severity="critical")
def test_engine_runs(host: Any, settings: DockerSettings) -> None:
    """Nothing is served while the engine is down, or after a reboot it does not survive."""
    service = host.service("docker")
    assert service.is_running, "docker.service is not running"
    assert service.is_enabled, "docker.service is not enabled: it would not start at boot"
    _info(host)


@control("DOCK-02", "Compose is version 2", severity="high")
def test_compose_is_v2(host: Any, settings: DockerSettings) -> None:
    """Compose 1 has had no security fixes since 2023 and knows no GPU reservations worth the name."""
    answer = host.run("docker compose version --short")
    assert answer.rc == 0, f"docker has no compose plugin: {answer.stderr.strip()}"
    version = answer.stdout.strip().removeprefix("v")
    assert version.split(".")[0].isdigit() and int(version.split(".")[0]) >= 2, f"Compose is {version}"


@control(
    "DOCK-03",
    "Container logs are bounded",
    severity="high",
    satisfies=["ISO 27001 A.8.15"],
)
def test_logs_are_bounded(host: Any, settings: DockerSettings) -> None:
    """A container that talks fills the disk of an unbounded log, and the host stops serving."""
    options = {"max-file": str(settings.log_max_files), "max-size": f"{settings.log_max_size_mib}m"}
    _expect(DAEMON_JSON, _config(host), {"log-driver": settings.log_driver, "log-opts": options})
    _expect("the running daemon", _info(host), {"LoggingDriver": settings.log_driver})


@control(
    "DOCK-04",
    "Containers outlive a restart of the daemon",
    severity="medium",
    satisfies=["CIS Docker 1.6 2.15"],
)
def test_live_restore(host: Any, settings: DockerSettings) -> None:
    """Without live restore a restart of the daemon cuts every running answer."""
    if not settings.live_restore:
        raise NotApplicable("live_restore is off in the settings")
    _expect(DAEMON_JSON, _config(host), {"live-restore": True})
    _expect("the running daemon", _info(host), {"LiveRestoreEnabled": True})


@control("DOCK-05", "Images and containers are kept where the settings say", severity="medium")
def test_data_root(host: Any, settings: DockerSettings) -> None:
    """A data root on the wrong disk fills the system's file system with images."""
    _expect("the running daemon", _info(host), {"DockerRootDir": settings.data_root})


@control(
    "DOCK-06",
    "The daemon's configuration can be changed by root alone",
    severity="critical",
    satisfies=["CIS Docker 1.6 3.17", "CIS Docker 1.6 3.18"],
)
def test_configuration_is_roots(host: Any, settings: DockerSettings) -> None:
    """Who writes daemon.json decides what runs as root."""
    file = host.file(DAEMON_JSON)
    assert file.exists, f"{DAEMON_JSON} is missing"
    assert (file.user, file.group) == ("root", "root"), f"{DAEMON_JSON} belongs to {file.user}:{file.group}"
    assert file.mode & 0o022 == 0, f"{DAEMON_JSON} has mode {file.mode:o}: others than root can write it"


@control(
    "DOCK-07",
    "The daemon listens on its local socket only",
    severity="critical",
    satisfies=["CIS Docker 1.6 2.7"],
)
def test_no_tcp_socket(host: Any, settings: DockerSettings) -> None:
    """An API on TCP without client certificates is root for everyone who reaches it."""
    arguments = host.run("tr '\\0' ' ' < /proc/$(pidof -s dockerd)/cmdline").stdout
    assert arguments, "dockerd is not running"
    listens = re.findall(r"(?:-H|--host)[ =]?(tcp:\S+|\[?[0-9.:\]]+)", arguments)
    listens += [item for item in _config(host).get("hosts", []) if not item.startswith(("unix:", "fd:"))]
    assert not listens, f"dockerd listens on {', '.join(listens)}"


@control(
    "DOCK-08",
    "Mirrors and address pools are those of the settings, and no registry is insecure",
    severity="high",
    satisfies=["CIS Docker 1.6 2.5"],
)
def test_registries_and_networks(host: Any, settings: DockerSettings) -> None:
    """An image from a wrong registry is foreign code; a pool that overlaps the site's networks cuts them off."""
    config = _config(host)
    mirrors, pools = config.get("registry-mirrors", []), config.get("default-address-pools", [])
    assert mirrors == list(settings.registry_mirrors), f"registry mirrors are {mirrors}"
    wanted = [{"base": str(pool.base), "size": pool.size} for pool in settings.address_pools]
    assert pools == wanted, f"address pools are {pools}, not {wanted}"
    assert not config.get("insecure-registries"), f"insecure registries: {config['insecure-registries']}"
