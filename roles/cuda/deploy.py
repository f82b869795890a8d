"""Deploy of the cuda role."""

from __future__ import annotations

from pyinfra import host
from pyinfra.api import OperationError, deploy
from pyinfra.operations import files

from gpurack.facts.debian import Platform, PlatformInfo
from gpurack.facts.driver import KernelState
from gpurack.facts.gpu import PciDevices
from gpurack.facts.installed_driver import InstalledDriver
from gpurack.gpu import cuda as toolkits
from gpurack.gpu.driver import choose
from gpurack.gpu.driver_packages import KEYRING, KEYRING_SHA256, NVIDIA_REPOSITORIES
from gpurack.gpu.driver_version import DriverError
from gpurack.gpu.kernels import headers_for
from gpurack.operations import driver, packages
from gpurack.settings import settings_for
from roles.cuda.settings import CudaSettings
from roles.nvidia_driver.settings import NvidiaDriverSettings


@deploy("CUDA toolkit")
def cuda(settings: CudaSettings) -> None:
    """Install the toolkit of the settings, none by default.

    Raises:
        OperationError: the driver is too old for it, or the source does not have it.
    """
    if settings.toolkit_version is None or not host.get_fact(PciDevices).cards:
        return
    platform = host.get_fact(Platform)
    try:
        names = toolkits.packages_for(
            settings.toolkit_version, settings.source, platform.distribution, platform.codename
        )
        check_driver(settings, platform)
    except toolkits.CudaError as error:
        raise OperationError(str(error)) from error
    if settings.source == "nvidia":
        nvidia_source(settings, platform)
    packages.installed(name="Install the toolkit", packages=names)


def check_driver(settings: CudaSettings, platform: PlatformInfo) -> None:
    """Raise a CudaError where the driver, installed or about to be, is too old for the toolkit."""
    assert settings.toolkit_version is not None  # noqa: S101 - checked by the caller
    version, what = host.get_fact(InstalledDriver), "the installed one"
    if not version:
        version, what = planned_driver(platform), "the branch that nvidia_driver installs"
    if version:
        toolkits.check(
            settings.toolkit_version,
            version,
            what,
            minor_version_compatibility=settings.minor_version_compatibility,
        )


def planned_driver(platform: PlatformInfo) -> str:
    """Return version or branch of the driver that this run installs first; empty where that is not known."""
    settings = settings_for(host, NvidiaDriverSettings)
    if not settings.enabled or settings.version:
        return settings.version or ""
    pci, kernels = host.get_fact(PciDevices), host.get_fact(KernelState)
    try:
        kind = headers_for(kernels, platform.distribution).packages[0].removeprefix("linux-headers-")
        return choose(settings, platform.distribution, platform.codename, pci.cards, pci.nvswitches, kind).branch
    except DriverError:  # which its own role reports
        return ""


def nvidia_source(settings: CudaSettings, platform: PlatformInfo) -> None:
    """Take the toolkit, and nothing that is there without it, from NVIDIA's repository."""
    repository = f"{settings.repository}/{NVIDIA_REPOSITORIES[platform.codename]}/x86_64"
    packages.installed(name="Install what fetching over HTTPS needs", packages=["ca-certificates", "curl"])
    driver.cuda_keyring(
        name="Trust the signing key of NVIDIA's repository",
        url=f"{repository}/cuda-keyring_1.1-1_all.deb",
        sha256=settings.keyring_sha256 or KEYRING_SHA256[platform.codename],
    )
    # The pin first: lists read in between must not offer another driver.
    for path in ("preferences.d/gpurack-cuda", "sources.list.d/gpurack-cuda.sources"):
        files.template(
            name=f"Configure apt: {path}",
            src=f"templates/cuda/{path.rpartition('/')[2]}.j2",
            dest=f"/etc/apt/{path}",
            user="root",
            group="root",
            mode="644",
            repository=repository,
            keyring=KEYRING,
        )
