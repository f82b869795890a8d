"""Settings, package choice and daemon.json of the docker role; facts' parsers."""

from __future__ import annotations

import json
from ipaddress import IPv4Network
from typing import Any

import pytest
from pydantic import ValidationError

from gpurack.facts.docker import ComposeProject, ImageId, Project
from gpurack.facts.textfile import Text, TextFile
from gpurack.operations.docker import data_root_of
from gpurack.rendering import render
from gpurack.versions import upstream_major
from roles.docker.packages import choose
from roles.docker.settings import DockerSettings


def daemon_json(**values: Any) -> dict[str, Any]:
    """Return the daemon.json of some settings."""
    return json.loads(render("templates/docker/daemon.json.j2", settings=DockerSettings(**values)))


def test_daemon_json_bounds_logs_and_keeps_containers_running() -> None:
    config = daemon_json(log_max_size_mib=10, log_max_files=3)
    assert config["log-opts"] == {"max-file": "3", "max-size": "10m"}
    assert config["live-restore"] is True
    assert config["features"] == {"containerd-snapshotter": False}
    assert "registry-mirrors" not in config and "default-address-pools" not in config


def test_daemon_json_names_mirrors_and_pools() -> None:
    pools = [{"base": "172.20.0.0/14", "size": 24}, {"base": "192.168.128.0/20", "size": 26}]
    config = daemon_json(registry_mirrors=["https://m1.example.org/", "http://m2:5000"], address_pools=pools)
    assert config["registry-mirrors"] == ["https://m1.example.org", "http://m2:5000"]
    assert config["default-address-pools"] == pools


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"data_root": "var/lib"}, "absolute path"),
        ({"data_root": "/"}, "absolute path"),
        ({"data_root": "/srv/../etc"}, "absolute path"),
        ({"registry_mirrors": ["mirror.example.org"]}, "expected a URL"),
        ({"registry_mirrors": ["https://me:secret@mirror.example.org"]}, "no user"),
        ({"log_max_size_mib": 0}, "greater than or equal to 1"),
        ({"address_pools": [{"base": "172.20.0.0/16", "size": 12}]}, "does not fit"),
        (
            {"address_pools": [{"base": "10.0.0.0/8", "size": 24}, {"base": "10.9.0.0/16", "size": 24}]},
            "10.0.0.0/8 overlaps 10.9.0.0/16",
        ),
        ({"source": "snap"}, "'debian' or 'docker'"),
    ],
)
def test_wrong_settings_are_refused_with_a_reason(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        DockerSettings(**values)


def test_debian_12_takes_compose_alone_from_debian_13() -> None:
    choice = choose(DockerSettings(), "debian", "bookworm")
    assert choice.packages == ("docker.io", "docker-compose")
    assert choice.least_major == {"docker-compose": 2}
    assert set(choice.apt_files) == {"preferences.d/gpurack-compose", "sources.list.d/gpurack-compose.sources"}
    pins = render("templates/docker/preferences.d/gpurack-compose.j2")
    assert "Package: *\nPin: release n=trixie\nPin-Priority: -10" in pins
    # The pin has to be there before the source: lists read in between must not offer Debian 13.
    assert choice.apt_files[0].startswith("preferences.d")


def test_debian_13_and_ubuntu_need_no_other_source() -> None:
    assert choose(DockerSettings(), "debian", "trixie").apt_files == ()
    assert choose(DockerSettings(), "ubuntu", "noble").packages == ("docker.io", "docker-compose-v2")


@pytest.mark.parametrize("release", [("debian", "trixie"), ("ubuntu", "jammy")])
def test_dockers_own_repository_is_signed_by_the_pinned_key(release: tuple[str, str]) -> None:
    settings = DockerSettings(source="docker", repository="https://mirror.example.org/docker/")
    choice = choose(settings, *release)
    source = render("templates/docker/sources.list.d/docker.sources.j2", settings=settings, choice=choice)
    assert choice.key_url == f"https://mirror.example.org/docker/{release[0]}/gpg"
    assert f"URIs: https://mirror.example.org/docker/{release[0]}\nSuites: {release[1]}\n" in source
    assert "Signed-By: /etc/apt/keyrings/docker.asc" in source
    assert "docker-ce" in choice.packages


@pytest.mark.parametrize(
    ("version", "major"),
    [("2.26.1-4", 2), ("1.29.2-3", 1), ("5:28.0.1-1~debian.13~trixie", 28), ("20.10.24+dfsg1-1+b6", 20), ("x", 0)],
)
def test_major_of_a_debian_version(version: str, major: int) -> None:
    assert upstream_major(version) == major


def test_data_root_of_a_configuration() -> None:
    assert data_root_of('{"data-root": "/data/docker"}') == "/data/docker"
    assert data_root_of("{}") == data_root_of("") == data_root_of("[]") == data_root_of("{broken") == "/var/lib/docker"


def test_text_file_fact() -> None:
    assert TextFile().process(["root:root 644", "a", "", "b"]) == Text("a\n\nb\n", "root:root", "644")
    assert TextFile().process([]) is None


def test_image_id_fact() -> None:
    assert ImageId().process(["sha256:ab"]) == "sha256:ab"
    assert ImageId().process([""]) is None


def container(**change: Any) -> str:
    """Return one line of the project fact."""
    fields = {
        "service": "ollama",
        "config_hash": "h1",
        "reference": "ollama/ollama:1",
        "image_id": "sha256:aa",
        "status": "running",
        "health": "healthy",
    }
    return "container " + json.dumps({**fields, **change})


def project(*lines: str) -> Project:
    """Parse lines of the project fact."""
    return ComposeProject().process(list(lines))


def test_project_is_up() -> None:
    assert project("hash ollama h1", container(), "image ollama/ollama:1 sha256:aa").is_up
    assert project("hash ollama h1", container(health=None), "image ollama/ollama:1 sha256:aa").is_up


@pytest.mark.parametrize(
    "lines",
    [
        (),
        ("hash ollama h1",),
        ("hash ollama h1", container()),
        ("hash ollama h2", container(), "image ollama/ollama:1 sha256:aa"),
        ("hash ollama h1", container(), "image ollama/ollama:1 sha256:bb"),
        ("hash ollama h1", container(status="exited"), "image ollama/ollama:1 sha256:aa"),
        ("hash ollama h1", container(health="starting"), "image ollama/ollama:1 sha256:aa"),
        ("hash ollama h1", container(), container(), "image ollama/ollama:1 sha256:aa"),
        ("hash ollama h1", container(), container(service="old"), "image ollama/ollama:1 sha256:aa"),
    ],
)
def test_project_is_not_up(lines: tuple[str, ...]) -> None:
    assert not project(*lines).is_up


@pytest.mark.parametrize(
    ("change", "stuck"),
    [({"health": "unhealthy"}, True), ({"status": "paused"}, True), ({"status": "exited"}, False), ({}, False)],
)
def test_stuck_containers_are_recreated(change: dict[str, Any], stuck: bool) -> None:
    assert project(container(**change)).containers[0].stuck is stuck


def test_pool_type() -> None:
    settings = DockerSettings(address_pools=[{"base": "172.20.0.0/14", "size": 24}])
    assert settings.address_pools[0].base == IPv4Network("172.20.0.0/14")
