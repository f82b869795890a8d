"""Deploy of the searxng role."""

from __future__ import annotations

from io import StringIO

from pyinfra.api import OperationError, deploy
from pyinfra.operations import files

from gpurack.operations import compose, docker, secretfile
from gpurack.secrets import SecretError
from gpurack.service import env_file
from roles.searxng.config import CONFIG, HOME, checksum, config_files
from roles.searxng.settings import SearxngSettings


@deploy("SearXNG")
def searxng(settings: SearxngSettings) -> None:
    """Run SearXNG as a Compose project, with Valkey where there is a limiter.

    Raises:
        OperationError: the secret key cannot be had.
    """
    try:
        secrets = env_file({"SEARXNG_SECRET": settings.secret_key.reveal()})
    except SecretError as error:
        raise OperationError(str(error)) from None
    docker.network(name="Make the network on which services find each other")
    for name in settings.image_names:
        docker.image(settings.images, name)
    for path in (HOME, CONFIG):
        files.directory(name=f"Keep {path}", path=path, user="root", group="root", mode="755")
    written = config_files(settings)
    for file, text in written.items():
        files.put(
            name=f"Put {file}",
            src=StringIO(text),
            dest=f"{CONFIG}/{file}",
            user="root",
            group="root",
            mode="644",
        )
    secretfile.put(name="Put SearXNG's secret key", dest=f"{HOME}/.env", content=secrets)
    compose.project(
        name="Run the project",
        project="searxng",
        src="templates/searxng/compose.yaml.j2",
        timeout=settings.ready_timeout,
        settings=settings,
        config=CONFIG,
        checksum=checksum(written),
    )
