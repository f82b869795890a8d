"""Deploy of the ollama role."""

from __future__ import annotations

from pyinfra.api import deploy
from pyinfra.operations import files

from gpurack.operations import compose, docker
from roles.ollama.settings import OllamaSettings


@deploy("Ollama")
def ollama(settings: OllamaSettings) -> None:
    """Bring the image to the host, give the models a place, run the Compose project until it is healthy."""
    files.directory(
        name="Keep models where the settings say",
        path=settings.models_dir,
        user="root",
        group="root",
        mode="700",
    )
    files.directory(
        name="Keep the Compose project in /etc",
        path=f"{compose.ROOT}/ollama",
        user="root",
        group="root",
        mode="755",
    )
    if settings.image_archive:
        docker.image_from_archive(
            name="Load the image from its archive",
            reference=settings.reference,
            archive=settings.image_archive,
        )
    compose.project(
        name="Run the project",
        project="ollama",
        src="templates/ollama/compose.yaml.j2",
        timeout=settings.ready_timeout,
        settings=settings,
    )
