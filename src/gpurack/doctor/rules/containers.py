"""Tests of what gives containers their GPUs: Docker, NVIDIA's container toolkit, the CDI specification."""

from __future__ import annotations

from typing import Literal

from gpurack.doctor.diagnosis import NOT_APPLICABLE, Sign, test
from gpurack.doctor.evidence import Evidence
from gpurack.doctor.rules.driver import same_version

Answer = Sign | Literal["not applicable"] | None


def uses_cdi(evidence: Evidence) -> bool:
    """Tell whether containers get their GPUs by CDI: the engine is set to it, or the service asks for CDI devices."""
    engine, container = evidence.engine, evidence.ollama
    asked = container is not None and any(item.startswith("nvidia.com/") for item in container.gpu_requests)
    return asked or (engine is not None and bool(engine.cdi_dirs) and "nvidia" not in engine.runtimes)


@test(
    "docker-down",
    "Docker does not run",
    severity="critical",
    needs=("docker",),
    explains=("container-runtime-missing", "cdi-stale", "@service"),
)
def docker_down(evidence: Evidence) -> Sign | None:
    """Every service of the host is a container."""
    unit, engine = evidence.unit("docker"), evidence.engine
    if engine is not None and not engine.error:
        return None
    if engine is not None:
        return Sign(
            [f"docker.service is {unit.active}", engine.error],
            "`systemctl restart docker` (running containers stay with live_restore); `journalctl -u docker -n 50` "
            "tells why it does not answer.",
            title="Docker does not answer",
        )
    if not unit.installed:
        return Sign(["docker.service is not installed"], evidence.deploy("docker"), title="Docker is not installed")
    return Sign(
        [f"docker.service is {unit.active} ({unit.result or unit.sub})", *evidence.docker_said],
        "`systemctl start docker`; if it does not start: `journalctl -u docker -n 50`. daemon.json and the unit are "
        f"put right by: {evidence.deploy('docker')}",
    )


@test(
    "container-runtime-missing",
    "Docker cannot give GPUs to containers",
    severity="critical",
    needs=("gpu", "docker"),
    explains=("cdi-stale", "ollama-down", "container-lost-gpu", "gpu-not-requested", "ollama-on-cpu", "ollama-silent"),
)
def container_runtime_missing(evidence: Evidence) -> Answer:
    """Without NVIDIA's container toolkit, known to Docker, no container sees a GPU."""
    engine, container = evidence.engine, evidence.ollama
    if engine is None or engine.error:
        return NOT_APPLICABLE
    seen = [] if evidence.toolkit else ["nvidia-ctk is not installed"]
    if "nvidia" not in engine.runtimes and not engine.cdi_dirs:
        seen.append(
            f"Docker {engine.version} has neither the runtime nvidia nor CDI (runtimes: {' '.join(engine.runtimes)})"
        )
    if container is not None and "could not select device driver" in container.error:
        seen.append(container.error)
    return Sign(seen, evidence.deploy("gpu")) if seen else None


@test(
    "cdi-stale",
    "The CDI specification is not that of the driver",
    severity="critical",
    needs=("gpu", "docker"),
    explains=("ollama-down", "container-lost-gpu", "ollama-on-cpu", "ollama-silent"),
)
def cdi_stale(evidence: Evidence) -> Answer:
    """It lists the driver's files by name; after an upgrade containers do not start, or start without the GPU."""
    if not uses_cdi(evidence) and not evidence.cdi:
        return NOT_APPLICABLE
    path = evidence.cdi[0].path if evidence.cdi else "/etc/cdi/nvidia.yaml"
    regenerate = (
        f"`nvidia-ctk cdi generate --output={path}`, then `docker restart ollama-ollama-1`; made and kept fresh by: "
        f"{evidence.deploy('gpu')}"
    )
    if not evidence.cdi:
        return Sign(
            ["no specification of nvidia.com in /etc/cdi or /var/run/cdi"],
            regenerate,
            title="There is no CDI specification of the GPUs",
        )
    driver = evidence.library_version or evidence.driver_version
    seen = []
    for spec in evidence.cdi:
        if not same_version(spec.driver_version, driver):
            seen.append(f"{spec.path} was made for driver {spec.driver_version}, installed is {driver}")
        seen += [f"{spec.path} names {path}, which is not there" for path in spec.missing[:4]]
    return Sign(seen, regenerate) if seen else None
