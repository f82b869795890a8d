"""Deploy of the container_toolkit role."""

from __future__ import annotations

from typing import Any

from pyinfra import host
from pyinfra.api import OperationError, deploy
from pyinfra.api.operation import OperationMeta
from pyinfra.operations import files, systemd
from pyinfra.operations.util import any_changed

from gpurack.facts.gpu import PciDevices
from gpurack.gpu.runtime import CDI_SPEC, Mode, RuntimeModeError
from gpurack.operations import docker as engine
from gpurack.operations import packages, pinned, toolkit
from gpurack.rendering import block_options
from roles.container_toolkit.mode import mode_of
from roles.container_toolkit.settings import ContainerToolkitSettings

KEYRING = "/etc/apt/keyrings/nvidia-container-toolkit.asc"
PACKAGES = (
    "nvidia-container-toolkit",
    "nvidia-container-toolkit-base",
    "libnvidia-container-tools",
    "libnvidia-container1",
)
VALUES: dict[str, str | bool] = {
    # Of cgroups made for containers without root; with it, GPUs are seen but may not be opened.
    "nvidia-container-cli.no-cgroups": False,
    "nvidia-container-runtime.mode": "auto",
}
"""What the toolkit's own configuration must say for GPUs to work; these are its defaults too."""


@deploy("Container toolkit")
def container_toolkit(settings: ContainerToolkitSettings) -> None:
    """Install the toolkit and keep the CDI specification true; Docker's own part is in the docker role.

    Raises:
        OperationError: the wanted mode does not work with this host's engine.
    """
    if not host.get_fact(PciDevices).cards:
        return
    try:
        mode = mode_of(host, settings)
    except RuntimeModeError as error:
        raise OperationError(str(error)) from error
    if mode is Mode.CDI:
        cdi_units_of_the_toolkit_give_way()
    install(settings)
    toolkit.configuration(name="Configure the toolkit", values=VALUES)
    put("/etc/udev/rules.d/71-gpurack-nvidia.rules", "Name the GPUs' devices as systemd looks for them")
    if mode is Mode.CDI:
        cdi()


def put(dest: str, what: str, **data: Any) -> OperationMeta:
    """Put the template named like a file on the host into place."""
    return files.template(
        name=what,
        src=f"templates/container_toolkit/{dest.rpartition('/')[2]}.j2",
        dest=dest,
        user="root",
        group="root",
        mode="644",
        jinja_env_kwargs=block_options(),
        **data,
    )


def install(settings: ContainerToolkitSettings) -> None:
    """Install the packages, from where the settings say."""
    if settings.source == "directory":
        assert settings.directory is not None  # noqa: S101 - refused by the settings
        pinned.from_directory(
            name="Install the toolkit from its files", directory=settings.directory, packages=PACKAGES
        )
        return
    packages.installed(name="Install what fetching over HTTPS needs", packages=["ca-certificates", "curl"])
    engine.repository_key(
        name="Trust the signing key of NVIDIA's repository",
        url=f"{settings.repository}/gpgkey",
        dest=KEYRING,
        sha256=settings.repository_key_sha256,
    )
    put(
        "/etc/apt/sources.list.d/nvidia-container-toolkit.sources",
        "Configure apt: NVIDIA's repository",
        settings=settings,
        keyring=KEYRING,
    )
    pinned.installed(name="Install the toolkit", packages=PACKAGES, version=settings.version)


def cdi_units_of_the_toolkit_give_way() -> None:
    """Before the packages bring them, tell the toolkit's own units that ours do their work; the README says why."""
    put("/etc/systemd/system/nvidia-cdi-refresh.service.d/gpurack.conf", "Let one unit make the CDI specification")


def cdi() -> None:
    """Make the CDI specification now, at boot before Docker starts, and when driver or toolkit change."""
    service = put("/etc/systemd/system/gpurack-cdi.service", "Make the CDI specification at boot", spec=CDI_SPEC)
    path = put("/etc/systemd/system/gpurack-cdi.path", "Make it anew when driver or toolkit change")
    again = put(
        "/etc/systemd/system/docker.service.d/gpurack-gpu-containers.conf",
        "Bring containers with GPUs back with Docker",
    )
    systemd.daemon_reload(name="Let systemd read the units", _if=any_changed(service, path, again))
    systemd.service(name="Enable it at boot", service="gpurack-cdi.service", running=None, enabled=True)
    systemd.service(name="Watch driver and toolkit", service="gpurack-cdi.path", running=True, enabled=True)
    # One in /run would count more than the one in /etc.
    files.file(name="Leave one CDI specification", path="/var/run/cdi/nvidia.yaml", present=False)
    toolkit.cdi_spec(name="Keep the CDI specification true")
