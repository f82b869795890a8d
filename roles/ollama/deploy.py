"""Deploy of the ollama role."""

from __future__ import annotations

from typing import Any

from pyinfra import host
from pyinfra.api import OperationError, deploy
from pyinfra.operations import files

from gpurack.facts.gpu import PciDevices
from gpurack.gpu.runtime import Mode, RuntimeModeError, reservation
from gpurack.operations import bundle, compose, docker
from gpurack.settings import settings_for
from roles.container_toolkit.mode import mode_of
from roles.ollama.settings import OllamaSettings
from roles.ollama_models.settings import OllamaModelsSettings


@deploy("Ollama")
def ollama(settings: OllamaSettings) -> None:
    """Bring the image to the host, give the models a place, run the Compose project until it is healthy.

    Raises:
        OperationError: the settings want GPUs, and the host has none.
    """
    gpus = gpus_of(settings)
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
    docker.image(settings.images, "ollama")
    if settings.bundle.path:
        models = settings_for(host, OllamaModelsSettings)
        bundle.models(
            name="Bring the bundle's models",
            bundle=settings.bundle.path,
            names=[model.name for model in models.models_pulled] if models.enabled else [],
            directory=settings.models_dir,
        )
    docker.network(name="Make the network on which services find each other")
    compose.project(
        name="Run the project",
        project="ollama",
        src="templates/ollama/compose.yaml.j2",
        timeout=settings.ready_timeout,
        settings=settings,
        reservation=gpus,
    )


def gpus_of(settings: OllamaSettings) -> dict[str, Any] | None:
    """Return what the Compose file reserves of this host's GPUs; None for the CPU."""
    if settings.accelerator == "cpu":
        return None
    cards = host.get_fact(PciDevices).cards
    if not cards:
        raise OperationError(
            'accelerator is "nvidia", and no NVIDIA card is on the PCI bus: set ollama.accelerator = "cpu" for this '
            "host, or look for the card (power, slot, BIOS; on a virtual machine, whether it is passed through)"
        )
    if settings.gpu_count != "all" and settings.gpu_count > len(cards):
        names = ", ".join(card.name for card in cards)
        raise OperationError(f"gpu_count is {settings.gpu_count}, and the host has {len(cards)} NVIDIA cards: {names}")
    try:
        # Where container_toolkit is disabled, somebody else has set up NVIDIA's runtime.
        mode = mode_of(host) or Mode.RUNTIME
    except RuntimeModeError as error:
        raise OperationError(f"container_toolkit.mode: {error}") from error
    return reservation(mode, settings.gpu_count, settings.gpu_device_ids)
