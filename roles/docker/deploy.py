"""Deploy of the docker role."""

from __future__ import annotations

from pyinfra import host
from pyinfra.api import OperationError, deploy
from pyinfra.operations import files, systemd

from gpurack.facts.debian import Platform
from gpurack.gpu.runtime import RuntimeModeError, daemon_options
from gpurack.operations import docker as engine
from gpurack.operations import packages
from roles.container_toolkit.mode import mode_of
from roles.docker.packages import KEYRING, choose
from roles.docker.settings import DockerSettings


@deploy("Docker engine")
def docker(settings: DockerSettings) -> None:
    """Install the engine and Compose v2, put the daemon's configuration in force, keep it running.

    On a host with NVIDIA's cards the configuration says how containers get them, unless container_toolkit is disabled.

    Raises:
        OperationError: the mode that container_toolkit's settings ask for does not work with this engine.
    """
    try:
        gpu = daemon_options(mode_of(host))
    except RuntimeModeError as error:
        raise OperationError(f"container_toolkit.mode: {error}") from error
    platform = host.get_fact(Platform)
    choice = choose(settings, platform.distribution, platform.codename)
    packages.installed(name="Install what fetching over HTTPS needs", packages=["ca-certificates", "curl"])
    if choice.key_url:
        engine.repository_key(
            name="Trust the signing key of Docker's repository",
            url=choice.key_url,
            dest=KEYRING,
            sha256=settings.repository_key_sha256,
        )
    for name in choice.apt_files:
        files.template(
            name=f"Configure apt: {name}",
            src=f"templates/docker/{name}.j2",
            dest=f"/etc/apt/{name}",
            user="root",
            group="root",
            mode="644",
            settings=settings,
            choice=choice,
        )
    packages.installed(name="Install the engine and Compose", packages=choice.packages, least_major=choice.least_major)
    engine.daemon_config(
        name="Put daemon.json in force", src="templates/docker/daemon.json.j2", settings=settings, gpu=gpu
    )
    systemd.service(name="Run the engine", service="docker.service", running=True, enabled=True)
