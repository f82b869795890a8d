"""Deploy of the vectordb role."""

from __future__ import annotations

from io import StringIO

from pyinfra.api import OperationError, deploy
from pyinfra.operations import files

from gpurack.operations import compose, docker, folders, pgvector, secretfile
from gpurack.secrets import SecretError
from gpurack.service import Service, env_file
from roles.vectordb.services import EMBED_ETCD_TEXT, services
from roles.vectordb.settings import VectordbSettings


@deploy("Vector databases")
def vectordb(settings: VectordbSettings) -> None:
    """Run the chosen databases, each as a Compose project of its own, until they are healthy.

    Raises:
        OperationError: a secret cannot be had.
    """
    try:
        chosen = list(services(settings))
    except SecretError as error:
        raise OperationError(str(error)) from None
    if not chosen:
        return
    docker.network(name="Make the network on which services find each other")
    folders.owned(name=f"Keep {settings.data_dir}", path=settings.data_dir, owner="0:0", mode="711")
    for service in chosen:
        _run(settings, service)
    if settings.pgvector:
        pgvector.password(name="Give pgvector's user the password of the settings")


def _run(settings: VectordbSettings, service: Service) -> None:
    docker.image(settings.images, service.image)
    folder = f"{settings.data_dir}/{service.name}"
    folders.owned(name=f"Keep {folder}", path=folder, owner=service.owner)
    for name in service.folders:
        folders.owned(name=f"Keep {folder}/{name}", path=f"{folder}/{name}", owner=service.owner)
    home = f"{compose.ROOT}/{service.name}"
    files.directory(name=f"Keep the project {service.name} in /etc", path=home, user="root", group="root", mode="755")
    if service.secrets:
        secretfile.put(
            name=f"Put the secrets of {service.name}", dest=f"{home}/.env", content=env_file(service.secrets)
        )
    for name in service.files:
        files.put(
            name=f"Put {name} of {service.name}",
            src=StringIO(EMBED_ETCD_TEXT),
            dest=f"{home}/{name}",
            user="root",
            group="root",
            mode="644",
        )
    publish = settings.databases[service.name].publish
    compose.project(
        name=f"Run {service.name}",
        project=service.name,
        src="templates/vectordb/compose.yaml.j2",
        timeout=settings.ready_timeout,
        settings=settings,
        service=service,
        publish=publish and str(publish),
    )
