"""How containers get GPUs: by CDI devices or by NVIDIA's container runtime, and what Docker and Compose are told.

The fault this is chosen against: with the runtime, GPUs are put into a container behind systemd's back. The next
``systemctl daemon-reload`` then takes them away, and the container says "Failed to initialize NVML: Unknown Error"
(NVIDIA/nvidia-docker#1671). CDI devices are in the container's own specification, so systemd keeps them; where an
engine knows no CDI, the cgroup driver cgroupfs leaves systemd out, as NVIDIA documents.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import StrEnum
from typing import Any, Literal

CDI_ENGINE = 25
"""First major version of Docker's engine that knows CDI devices."""

DEBIAN_ENGINES = {"bookworm": 20, "trixie": 26, "jammy": 26, "noble": 26}
"""Major version of docker.io in each supported release, for hosts that have no engine yet."""

DOCKER_CE = 28
"""Docker's own repository serves this major version or a later one to every supported release."""

CDI_KIND = "nvidia.com/gpu"
CDI_SPEC = "/etc/cdi/nvidia.yaml"
"""On disk, not below /run: containers that start with Docker at boot must find it."""

DeviceCount = int | Literal["all"]


class Mode(StrEnum):
    """Way in which a container gets GPUs."""

    CDI = "cdi"
    RUNTIME = "runtime"


class RuntimeModeError(ValueError):
    """The wanted mode cannot work with the host's engine; the message says what can."""


def engine_major(installed: str, source: str, codename: str) -> int:
    """Return the major version of the engine a host has, or will have.

    Args:
        installed: what ``dockerd --version`` says; empty without an engine.
        source: the docker role's setting, ``debian`` or ``docker``.
        codename: release of the host.
    """
    if source == "docker":  # also where the distribution's is still there: the docker role replaces it
        return DOCKER_CE
    if match := re.search(r"\bversion (\d+)\.", installed):
        return int(match.group(1))
    return DEBIAN_ENGINES.get(codename, CDI_ENGINE)


def choose_mode(wanted: Mode | Literal["auto"], engine: int) -> Mode:
    """Return the mode for an engine.

    Raises:
        RuntimeModeError: CDI is wanted, and the engine does not know it.
    """
    if wanted == "auto":
        return Mode.CDI if engine >= CDI_ENGINE else Mode.RUNTIME
    if wanted is Mode.CDI and engine < CDI_ENGINE:
        raise RuntimeModeError(
            f'mode "cdi" needs Docker {CDI_ENGINE} or later, and this host has {engine}: set mode to "auto" or '
            '"runtime", or take Docker\'s own packages with docker.source = "docker"'
        )
    return wanted


def daemon_options(mode: Mode | None) -> dict[str, Any]:
    """Return what daemon.json says of GPUs, as ``nvidia-ctk runtime configure`` would have it; None for no GPUs."""
    if mode is Mode.CDI:
        return {"features": {"cdi": True}}
    if mode is Mode.RUNTIME:
        return {
            "exec-opts": ["native.cgroupdriver=cgroupfs"],
            "runtimes": {"nvidia": {"args": [], "path": "nvidia-container-runtime"}},
        }
    return {}


def reservation(mode: Mode, count: DeviceCount = "all", device_ids: Sequence[str] = ()) -> dict[str, Any]:
    """Return one entry of a Compose service's ``deploy.resources.reservations.devices``.

    Args:
        mode: how containers of the host get GPUs.
        count: how many GPUs; the first ones by index.
        device_ids: the very GPUs, replacing the count: index, GPU UUID, MIG UUID, or MIG device as ``0:1``.
    """
    if mode is Mode.CDI:
        return {"driver": "cdi", "device_ids": list(cdi_devices(count, device_ids)), "capabilities": ["gpu"]}
    chosen = {"device_ids": list(device_ids)} if device_ids else {"count": count}
    return {"driver": "nvidia", **chosen, "capabilities": ["gpu"]}


def cdi_devices(count: DeviceCount = "all", device_ids: Sequence[str] = ()) -> tuple[str, ...]:
    """Return names of CDI devices, such as ``nvidia.com/gpu=0``."""
    names = tuple(device_ids) or (("all",) if count == "all" else tuple(str(number) for number in range(count)))
    return tuple(f"{CDI_KIND}={name}" for name in names)
