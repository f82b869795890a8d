"""Deploy of the nvidia_driver role."""

from __future__ import annotations

from typing import Any

from pyinfra import host, logger
from pyinfra.api import OperationError, deploy
from pyinfra.operations import files, systemd

from gpurack.facts.debian import Platform, PlatformInfo
from gpurack.facts.driver import KernelState, RunningModule
from gpurack.facts.gpu import PciDevices
from gpurack.gpu.driver import choose
from gpurack.gpu.driver_packages import KEYRING_SHA256, DriverChoice, Source
from gpurack.gpu.driver_version import DriverError
from gpurack.gpu.kernels import headers_for
from gpurack.gpu.models import PciInventory
from gpurack.operations import driver, driver_running, packages
from roles.nvidia_driver.settings import NvidiaDriverSettings

SOURCES = {"sources.list.d/gpurack-nvidia.sources", "sources.list.d/gpurack-nvidia-backports.sources"}
NOUVEAU = "/etc/modprobe.d/gpurack-nouveau.conf"


@deploy("NVIDIA driver")
def nvidia_driver(settings: NvidiaDriverSettings) -> None:
    """Install the driver that the cards need, build its module, load it, and keep all of that over updates."""
    pci: PciInventory = host.get_fact(PciDevices)
    cards = [card for card in pci.cards if card.driver != "vfio-pci"]  # those are passed through to virtual machines
    if not cards:
        return
    platform, kernels, module = host.get_fact(Platform), host.get_fact(KernelState), host.get_fact(RunningModule)
    try:
        headers = headers_for(kernels, platform.distribution)
        kind = headers.packages[0].removeprefix("linux-headers-")
        choice = choose(settings, platform.distribution, platform.codename, cards, pci.nvswitches, kind)
    except DriverError as error:
        raise OperationError(str(error)) from None
    for reason in (*choice.reasons, *headers.notes):
        logger.info(f"{host.print_prefix}{reason}")

    package_sources(settings, choice, platform)
    if module.secure_boot:
        packages.installed(name="Install what tells of Secure Boot's keys", packages=["mokutil"])
    put(NOUVEAU, "Keep nouveau away from the cards")
    put("/etc/modules-load.d/gpurack-nvidia.conf", "Load the driver at boot")
    driver.installed(
        name="Install the driver, and pin its version",
        choice=choice,
        headers=headers,
        upgrade=settings.upgrade,
        stop_containers=settings.stop_containers,
        local_files=settings.local_files,
    )
    driver.held(name="Hold the driver's packages", packages=choice.held)
    if choice.dkms:
        driver.built(name="Build the module for every kernel that needs it", choice=choice)
    driver.initramfs(name="Keep nouveau out of the initial RAM disks", path=NOUVEAU)
    driver_running.signed(name="Pass Secure Boot", choice=choice)
    driver_running.in_force(
        name="Bring the driver into the running kernel",
        choice=choice,
        _serial=True,
        **driver_running.arguments(settings),
    )
    services(choice, container=kernels.container)
    driver_running.containers_back(name="Start the containers again that were stopped for the driver")


def package_sources(settings: NvidiaDriverSettings, choice: DriverChoice, platform: PlatformInfo) -> None:
    """Say where the driver's packages come from."""
    if choice.source is Source.NVIDIA:
        packages.installed(name="Install what fetching over HTTPS needs", packages=["ca-certificates", "curl"])
        driver.cuda_keyring(
            name="Trust the signing key of NVIDIA's repository",
            url=f"{settings.repository}/{choice.repository}/x86_64/cuda-keyring_1.1-1_all.deb",
            sha256=settings.keyring_sha256 or KEYRING_SHA256[platform.codename],
        )
    for name in sorted(SOURCES - set(choice.apt_files)):
        files.file(name=f"Leave out of apt: {name}", path=f"/etc/apt/{name}", present=False)
    for name in choice.apt_files:
        put(f"/etc/apt/{name}", f"Configure apt: {name}", settings=settings, choice=choice, codename=platform.codename)


def put(dest: str, what: str, **data: Any) -> None:
    """Put the template named like a file on the host into place."""
    folder, _, name = dest.rpartition("/")
    files.template(
        name=what,
        src=f"templates/nvidia_driver/{folder.rpartition('/')[2]}/{name}.j2",
        dest=dest,
        user="root",
        group="root",
        mode="644",
        **data,
    )


def services(choice: DriverChoice, *, container: bool) -> None:
    """Keep the driver's state while no program uses the cards, and NVSwitches configured."""
    names = ["nvidia-persistenced.service"]
    if choice.fabric_manager:
        names.append("nvidia-fabricmanager.service")
    for name in names:
        # Without the driver in the kernel they end at once; where it is still missing, the step before has said so.
        systemd.service(name=f"Enable {name}", service=name, enabled=True, running=None)
        if not container:
            systemd.service(
                name=f"Run {name}", service=name, running=True, _if=lambda: bool(host.get_fact(RunningModule).loaded)
            )
