"""Deploy of the ollama_models role."""

from __future__ import annotations

from pyinfra import host
from pyinfra.api import OperationError, deploy

from gpurack import capacity, notices
from gpurack.facts.ollama import Models, RegistryManifests
from gpurack.ollama import plan
from gpurack.ollama.progress import size
from gpurack.operations import ollama
from gpurack.settings import settings_for
from roles.ollama.settings import OllamaSettings
from roles.ollama_models.settings import OllamaModelsSettings
from roles.ollama_models.wanted import absent, wanted


@deploy("Ollama models")
def ollama_models(settings: OllamaModelsSettings) -> None:
    """Bring the declared models to the host, make those with parameters of their own, load those to be loaded.

    Raises:
        OperationError: a model cannot be had or does not fit: said before anything is changed.
    """
    if not settings.models and not settings.remove_unlisted:
        return
    server = settings_for(host, OllamaSettings)
    unfit = capacity.obstacles(host, settings, server)
    models, gone = wanted(settings), absent(settings)
    address, directory = server.local_address, server.models_dir
    found = host.get_fact(Models, address=address, directory=directory)
    needed = plan.pulls(models, found)
    served = (
        host.get_fact(
            RegistryManifests, names=[pull.name for pull in needed], insecure=list(settings.insecure_registries)
        )
        if needed
        else {}
    )
    # The one place for whatever stands against the models as a whole, known before anything is changed.
    problems = ollama.obstacles(models, found, served, directory, settings.disk_reserve_gib)
    if unfit and settings.capacity == "enforce":
        problems += [
            *unfit,
            'see `gpurack capacity`, which shows the figures; ollama_models.capacity = "warn" goes on all the same',
        ]
    if problems:
        raise OperationError("; ".join(problems))
    for line in unfit:
        notices.leave(host, f"a model may not fit: {line}")
    ollama.pulled(
        name="Pull models",
        models=models,
        address=address,
        directory=directory,
        reserve_gib=settings.disk_reserve_gib,
        parallel=settings.parallel_pulls,
        insecure=list(settings.insecure_registries),
    )
    for model in models:
        if model.is_made:
            ollama.made(name=f"Make {model.name}", model=model, address=address, directory=directory)
    ollama.removed(
        name="Remove models",
        models=models,
        absent=gone,
        address=address,
        directory=directory,
        remove_unlisted=settings.remove_unlisted,
    )
    if any(model.keep_alive for model in models):
        ollama.loaded(name="Load models", models=models, address=address, directory=directory)
    if not settings.remove_unlisted and (others := plan.unlisted(models, gone, found)):
        names = ", ".join(f"{model.name} ({size(model.size)})" for model in others)
        notices.leave(host, f"models that are not declared: {names}; declare them, or set remove_unlisted")
