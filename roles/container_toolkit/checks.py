"""Controls of the container_toolkit role."""

from __future__ import annotations

import json
import shlex
from typing import Any

from gpurack.controls import NotApplicable, control
from gpurack.facts.driver import Held
from gpurack.facts.packages import Packages
from gpurack.facts.toolkit import CdiSpecs, EngineVersion, ToolkitConfiguration
from gpurack.gpu.evidence import cards, daemon_mode, read
from gpurack.gpu.runtime import CDI_ENGINE, CDI_SPEC, Mode, choose_mode, engine_major
from roles.container_toolkit.deploy import PACKAGES, VALUES
from roles.container_toolkit.settings import ContainerToolkitSettings


def _engine_mode(host: Any, settings: ContainerToolkitSettings) -> Mode:
    """Return the mode that belongs to the engine that is installed."""
    cards(host)
    version = read(host, EngineVersion)
    if not version:
        raise NotApplicable("no Docker engine is installed")
    engine = engine_major(version, "debian", "")
    assert settings.mode is not Mode.CDI or engine >= CDI_ENGINE, f"mode is cdi, and {version} knows no CDI"
    return choose_mode(settings.mode, engine)


def _info(host: Any, name: str) -> Any:
    answer = host.run(f"docker info --format '{{{{json .{name}}}}}'")
    assert answer.rc == 0, f"the daemon does not answer: {answer.stderr.strip()}"
    return json.loads(answer.stdout)


def _needs_cdi(host: Any, settings: ContainerToolkitSettings) -> None:
    if _engine_mode(host, settings) is not Mode.CDI:
        raise NotApplicable("containers get GPUs by NVIDIA's runtime here, not by CDI")


@control("CTK-01", "The toolkit's four packages are installed, at the version of the settings", severity="critical")
def test_packages(host: Any, settings: ContainerToolkitSettings) -> None:
    """Without them no container sees a GPU; of different versions they refuse to work together."""
    cards(host)
    installed = read(host, Packages, packages=list(PACKAGES), max_age_minutes=10**6).installed
    missing = [name for name in PACKAGES if name not in installed]
    assert not missing, f"not installed: {', '.join(missing)}"
    assert len(set(installed.values())) == 1, f"versions differ: {installed}"
    if settings.version is not None:
        found = installed[PACKAGES[0]]
        assert found == settings.version, f"version {found} is installed, not {settings.version}"
        held: set[str] = read(host, Held)
        loose = set(PACKAGES) - held
        assert not loose, f"the next upgrade would replace {', '.join(sorted(loose))}: not held"
    answer = host.run("nvidia-ctk --version")
    assert answer.rc == 0, f"nvidia-ctk does not run: {answer.stderr.strip()}"


@control("CTK-02", "Docker knows how to give GPUs to containers", severity="critical")
def test_docker_is_told(host: Any, settings: ContainerToolkitSettings) -> None:
    """A daemon that was not told, or not restarted since, refuses the container, or starts it without GPUs."""
    mode = _engine_mode(host, settings)
    assert daemon_mode(host) is mode, f"daemon.json is that of mode {daemon_mode(host)}, not {mode}"
    if mode is Mode.CDI:
        assert _info(host, "CDISpecDirs"), "the running daemon has CDI off: it was not restarted"
    else:
        assert "nvidia" in _info(host, "Runtimes"), "the running daemon has no runtime nvidia: it was not restarted"


@control("CTK-03", "The CDI specification is that of the installed driver and the GPUs", severity="high")
def test_cdi_spec_is_fresh(host: Any, settings: ContainerToolkitSettings) -> None:
    """A stale one mounts libraries that are gone: containers stop starting at the next restart, often weeks later."""
    _needs_cdi(host, settings)
    state = read(host, CdiSpecs)
    assert state.spec, f"{CDI_SPEC} is missing, or no specification"
    assert state.current, f"nvidia-ctk cannot tell what it should say: {state.error}"
    differences = state.spec.differences(state.current)
    assert not differences, f"{CDI_SPEC}: {'; '.join(differences)}"
    other = host.file("/var/run/cdi/nvidia.yaml")
    assert not other.exists, "/var/run/cdi/nvidia.yaml counts more than the one in /etc/cdi, and nobody renews it"


@control("CTK-04", "The CDI specification is made anew at boot and when driver or toolkit change", severity="high")
def test_cdi_spec_is_renewed(host: Any, settings: ContainerToolkitSettings) -> None:
    """Driver updates come by themselves; without this, the next one takes the GPUs from every container."""
    _needs_cdi(host, settings)
    for unit in ("gpurack-cdi.service", "gpurack-cdi.path"):
        assert host.service(unit).is_enabled, f"{unit} is not enabled"
    assert host.service("gpurack-cdi.path").is_running, "gpurack-cdi.path does not run: changes are not noticed"
    order = host.run("systemctl show gpurack-cdi.service --property Before --value").stdout.split()
    assert "docker.service" in order, "gpurack-cdi.service is not started before Docker at boot"


@control("CTK-05", "Containers keep their GPUs when systemd reloads", severity="critical")
def test_gpus_outlive_a_reload(host: Any, settings: ContainerToolkitSettings) -> None:
    """GPUs given behind systemd's back are lost at the next daemon-reload: "Failed to initialize NVML: Unknown Error".

    NVIDIA/nvidia-docker#1671. CDI devices are safe, and so is everything under the cgroup driver cgroupfs.
    """
    mode = _engine_mode(host, settings)
    driver = _info(host, "CgroupDriver")
    if driver != "systemd":
        return
    assert mode is Mode.CDI, "GPUs are given by NVIDIA's runtime, and the cgroup driver is systemd, not cgroupfs"
    # A request without a driver is that of `docker run --gpus`: NVIDIA's hook answers it.
    requests = '{{range .HostConfig.DeviceRequests}} {{if ne .Driver "cdi"}}nvidia{{end}}{{end}}'
    form = "{{.Name}} {{.HostConfig.Runtime}}" + requests
    listed = host.run(
        f"docker ps --quiet | xargs --no-run-if-empty docker container inspect --format {shlex.quote(form)}"
    )
    assert listed.rc == 0, f"the daemon does not answer: {listed.stderr.strip()}"
    rows = [line.split() for line in listed.stdout.splitlines() if line.strip()]
    unsafe = [name.lstrip("/") for name, *ways in rows if "nvidia" in ways]
    assert not unsafe, f"{', '.join(unsafe)}: GPUs not given as CDI devices; make these containers anew with driver cdi"


@control("CTK-06", "The toolkit's own configuration lets containers use GPUs", severity="high")
def test_configuration(host: Any, settings: ContainerToolkitSettings) -> None:
    """With no-cgroups, of a set-up without root, GPUs are seen but may not be opened."""
    cards(host)
    config = read(host, ToolkitConfiguration)
    assert not config.error, config.error
    # What is not in the file is the toolkit's default, which is the wanted value.
    wrong = [
        f"{name} is {config.get(name)!r}, not {value!r}"
        for name, value in VALUES.items()
        if config.get(name) not in (None, value)
    ]
    assert not wrong, "; ".join(wrong)


@control("CTK-07", "Containers with GPUs come back when Docker starts", severity="high")
def test_containers_come_back(host: Any, settings: ContainerToolkitSettings) -> None:
    """Docker before 28.2 starts them before it knows CDI, and fails (moby/moby#49989): a reboot ends the service."""
    _needs_cdi(host, settings)
    loaded = host.run("systemctl show docker.service --property ExecStartPost --value").stdout
    assert "device driver .cdi." in loaded, "docker.service does not start them: its drop-in is missing or not loaded"
    form = "{{.Name}} {{.HostConfig.RestartPolicy.Name}} {{.State.Running}} {{.State.Error}}"
    listed = host.run(f"docker ps --all --quiet | xargs --no-run-if-empty docker inspect --format {shlex.quote(form)}")
    failed = [line for line in listed.stdout.splitlines() if 'false could not select device driver "cdi"' in line]
    down = " ".join(line.split()[0].lstrip("/") for line in failed)
    assert not down, f"not started, because Docker did not know CDI yet: docker start {down}"
