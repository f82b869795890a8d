"""Ways in which containers get GPUs; CDI specifications; the container toolkit's settings and facts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from pyinfra.api import OperationError

from gpurack.facts.toolkit import CdiSpecs, EngineVersion, ToolkitConfiguration
from gpurack.gpu.cdi import CdiSpec, parse
from gpurack.gpu.runtime import (
    Mode,
    RuntimeModeError,
    cdi_devices,
    choose_mode,
    daemon_options,
    engine_major,
    reservation,
)
from gpurack.operations.docker import exec_options_of
from gpurack.operations.pinned import debs_in
from gpurack.rendering import render
from roles.container_toolkit.settings import ContainerToolkitSettings
from roles.docker.settings import DockerSettings

# What `nvidia-ctk cdi generate` 1.17 writes for two GPUs, one of them divided, shortened.
SPEC = """\
---
cdiVersion: 0.5.0
containerEdits:
  deviceNodes:
  - path: /dev/nvidiactl
  hooks:
  - args:
    - nvidia-cdi-hook
    - create-symlinks
    - --link
    - libcuda.so.1::/usr/lib/x86_64-linux-gnu/libcuda.so
    hookName: createContainer
    path: /usr/bin/nvidia-cdi-hook
  mounts:
  - containerPath: /usr/lib/x86_64-linux-gnu/libEGL_nvidia.so.550.163.01
    hostPath: /usr/lib/x86_64-linux-gnu/libEGL_nvidia.so.550.163.01
  - containerPath: /usr/lib/x86_64-linux-gnu/libcuda.so.550.163.01
    hostPath: /usr/lib/x86_64-linux-gnu/libcuda.so.550.163.01
devices:
- containerEdits:
    deviceNodes:
    - path: /dev/nvidia0
  name: "0"
- containerEdits:
    deviceNodes:
    - path: /dev/nvidia0
  name: GPU-8f1f9a3c-1111-2222-3333-444455556666
- containerEdits:
    deviceNodes:
    - path: /dev/nvidia1
  name: "1:0"
- containerEdits:
    deviceNodes:
    - path: /dev/nvidia1
  name: all
kind: nvidia.com/gpu
"""


def test_specification() -> None:
    spec = parse(SPEC.splitlines())
    names = {"0", "GPU-8f1f9a3c-1111-2222-3333-444455556666", "1:0", "all"}
    assert spec == CdiSpec("550.163.01", frozenset(names))
    assert parse([]) is None and parse(["{broken"]) is None


@given(st.lists(st.text(max_size=80)))
def test_no_text_breaks_the_parsers(lines: list[str]) -> None:
    parse(lines)
    CdiSpecs().process([f"{mark} {line}" for mark in ("file", "now") for line in lines])
    config = ToolkitConfiguration().process(lines)
    assert config.get("nvidia-container-runtime.mode") is None or isinstance(config.values, dict)


def test_differences_of_specifications() -> None:
    old, new = CdiSpec("535.261.03", frozenset({"0", "all"})), CdiSpec("550.163.01", frozenset({"0:0", "all"}))
    assert old.differences(old) == []
    assert old.differences(new) == [
        "made for driver 535.261.03, and 550.163.01 is installed",
        "names devices that are gone: 0",
        "lacks devices: 0:0",
    ]


def test_cdi_state() -> None:
    lines = [f"file {line}" for line in SPEC.splitlines()]
    state = CdiSpecs().process([*lines, *(line.replace("file", "now", 1) for line in lines)])
    assert state.spec == state.current is not None and state.error == ""
    failed = CdiSpecs().process([*lines, 'now level=error msg="failed to initialize NVML: Driver Not Loaded"'])
    assert failed.spec and failed.current is None and "Driver Not Loaded" in failed.error
    assert CdiSpecs.default().spec is None


DEBIAN_12 = "Docker version 20.10.24+dfsg1, build 297e128"
DEBIAN_13 = "Docker version 26.1.5+dfsg1, build a72d7cd"


@pytest.mark.parametrize(
    ("installed", "source", "codename", "major"),
    [
        (DEBIAN_12, "debian", "bookworm", 20),
        (DEBIAN_13, "debian", "trixie", 26),
        ("", "debian", "bookworm", 20),
        ("", "debian", "trixie", 26),
        (DEBIAN_12, "docker", "bookworm", 28),
        ("Docker version 29.0.1, build 1234567", "debian", "noble", 29),
    ],
)
def test_engine(installed: str, source: str, codename: str, major: int) -> None:
    assert engine_major(installed, source, codename) == major


def test_engine_version_fact() -> None:
    assert EngineVersion().process([DEBIAN_13]) == DEBIAN_13 and EngineVersion().process([]) == ""


@pytest.mark.parametrize(
    ("wanted", "engine", "mode"),
    [
        ("auto", 20, Mode.RUNTIME),
        ("auto", 24, Mode.RUNTIME),
        ("auto", 25, Mode.CDI),
        ("auto", 28, Mode.CDI),
        (Mode.RUNTIME, 28, Mode.RUNTIME),
        (Mode.CDI, 26, Mode.CDI),
    ],
)
def test_mode(wanted: Any, engine: int, mode: Mode) -> None:
    assert choose_mode(wanted, engine) is mode


def test_cdi_under_an_engine_without_it_is_refused() -> None:
    with pytest.raises(
        RuntimeModeError, match=r'needs Docker 25 or later, and this host has 20.*docker.source = "docker"'
    ):
        choose_mode(Mode.CDI, 20)


@pytest.mark.parametrize("mode", [None, *Mode])
@pytest.mark.parametrize(
    "values",
    [
        {},
        {"registry_mirrors": ["https://m.example.org"]},
        {"address_pools": [{"base": "10.0.0.0/8", "size": 24}]},
        {"registry_mirrors": ["https://m.example.org"], "address_pools": [{"base": "10.0.0.0/8", "size": 24}]},
    ],
)
def test_daemon_json_says_how_containers_get_gpus(mode: Mode | None, values: dict[str, Any]) -> None:
    gpu = daemon_options(mode)
    text = render("templates/docker/daemon.json.j2", settings=DockerSettings(**values), gpu=gpu)
    config = json.loads(text)
    assert config["features"] == {"containerd-snapshotter": False, **({"cdi": True} if mode is Mode.CDI else {})}
    assert ("runtimes" in config) is ("exec-opts" in config) is (mode is Mode.RUNTIME)
    without = render("templates/docker/daemon.json.j2", settings=DockerSettings(**values))
    assert (text == without) is (mode is None)


def test_the_runtime_never_comes_with_systemds_cgroup_driver() -> None:
    """The fault of NVIDIA/nvidia-docker#1671."""
    assert daemon_options(Mode.RUNTIME)["exec-opts"] == ["native.cgroupdriver=cgroupfs"]
    assert exec_options_of(json.dumps(daemon_options(Mode.RUNTIME))) == ["native.cgroupdriver=cgroupfs"]
    assert exec_options_of("") == exec_options_of("{}") == exec_options_of("[]") == exec_options_of("{x") == []


@pytest.mark.parametrize(
    ("count", "ids", "names"),
    [
        ("all", (), ("nvidia.com/gpu=all",)),
        (2, (), ("nvidia.com/gpu=0", "nvidia.com/gpu=1")),
        ("all", ("3", "GPU-ab"), ("nvidia.com/gpu=3", "nvidia.com/gpu=GPU-ab")),
        ("all", ("0:1", "MIG-cd"), ("nvidia.com/gpu=0:1", "nvidia.com/gpu=MIG-cd")),
    ],
)
def test_cdi_devices(count: Any, ids: tuple[str, ...], names: tuple[str, ...]) -> None:
    assert cdi_devices(count, ids) == names
    assert reservation(Mode.CDI, count, ids) == {"driver": "cdi", "device_ids": [*names], "capabilities": ["gpu"]}


def test_reservations_for_the_runtime() -> None:
    assert reservation(Mode.RUNTIME) == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}
    assert reservation(Mode.RUNTIME, 2)["count"] == 2
    by_id = reservation(Mode.RUNTIME, "all", ["0:1"])
    assert by_id == {"driver": "nvidia", "device_ids": ["0:1"], "capabilities": ["gpu"]}


def test_configuration_fact() -> None:
    config = ToolkitConfiguration().process(["[nvidia-container-runtime]", 'mode = "auto"'])
    assert config.get("nvidia-container-runtime.mode") == "auto" and not config.error
    assert (
        config.get("nvidia-container-cli.no-cgroups") is None and config.get("nvidia-container-runtime.mode.x") is None
    )
    assert "not TOML" in ToolkitConfiguration().process(["[["]).error
    assert "missing" in ToolkitConfiguration.default().error


def test_files_of_a_directory(tmp_path: Path) -> None:
    (tmp_path / "a_1%3a1.0-1_amd64.deb").touch()
    (tmp_path / "a-base_2.0-1_amd64.deb").touch()
    assert [(deb.package, deb.version) for deb in debs_in(tmp_path, ["a", "a-base"])] == [
        ("a", "1:1.0-1"),
        ("a-base", "2.0-1"),
    ]
    (tmp_path / "a_2.0-1_amd64.deb").touch()
    with pytest.raises(
        OperationError, match=r"expected one file a_<version>_<arch>.deb, found a_1.*, a_2.0-1_amd64.deb"
    ):
        debs_in(tmp_path, ["a"])
    with pytest.raises(OperationError, match="found none"):
        debs_in(tmp_path, ["b"])


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"source": "directory"}, "needs directory"),
        ({"source": "directory", "directory": "no/such"}, "no/such is no directory"),
        ({"source": "directory", "directory": "tests", "version": "1.18.1-1"}, "the files say it"),
        ({"directory": "tests"}, 'is for source="directory"'),
        ({"repository": "mirror.example.org"}, "expected a URL"),
        ({"repository": "https://me:x@mirror.example.org"}, "no user"),
        ({"version": "1.18"}, "match pattern"),
        ({"mode": "hook"}, "'cdi'.*'runtime'.*|'auto'"),
    ],
)
def test_wrong_settings_are_refused_with_a_reason(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        ContainerToolkitSettings(**values)
