"""Controls of the ollama_models role."""

from __future__ import annotations

import json
import shlex
from typing import Any

from gpurack.controls import NotApplicable, control
from gpurack.facts.ollama import Models
from gpurack.ollama import plan
from gpurack.ollama.api import CURL
from gpurack.ollama.plan import Found, Wanted
from gpurack.ollama.progress import size
from roles.ollama_models.settings import OllamaModelsSettings
from roles.ollama_models.wanted import absent, wanted

GIB = 1024**3


def _server(host: Any) -> tuple[str, str]:
    """Return address and models directory of the server, as its container has them."""
    label = "com.docker.compose"
    found = host.run(
        f"docker ps --quiet --filter label={label}.project=ollama --filter label={label}.service=ollama | "
        "xargs --no-run-if-empty docker container inspect"
    )
    assert found.rc == 0 and found.stdout.strip(), "no container of Ollama runs"
    container = json.loads(found.stdout)[0]
    [binding] = container["HostConfig"]["PortBindings"]["11434/tcp"]
    address = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "[::1]"}.get(binding["HostIp"], binding["HostIp"])  # noqa: S104
    mounts = {item["Destination"]: item["Source"] for item in container["Mounts"]}
    return f"{address}:{binding['HostPort']}", mounts["/root/.ollama"]


def _found(host: Any, settings: OllamaModelsSettings) -> Found:
    if not settings.models and not settings.remove_unlisted:
        raise NotApplicable("no model is declared")
    address, directory = _server(host)
    fact = Models()
    found = fact.process(host.run(fact.command(address=address, directory=directory)).stdout.splitlines())
    assert found.up, f"Ollama at {address} does not answer"
    return found


@control("OLLM-01", "Every declared model is there, with all its parts", severity="critical")
def test_models_are_there(host: Any, settings: OllamaModelsSettings) -> None:
    """A workspace or a program that names a missing model gets an error in place of an answer."""
    found = _found(host, settings)
    wrong = []
    for model in wanted(settings):
        if model.name.key not in found.models:
            wrong.append(f"{model.name} is missing")
        elif lacking := found.disk.lacking(model.name.key):
            wrong.append(f"{model.name} lacks {', '.join(lacking)}: missing, or not of the length in its manifest")
    assert not wrong, "; ".join(wrong)


@control("OLLM-02", "Pinned models have their digest", severity="high", satisfies=["ISO 27001 A.8.32"])
def test_digests(host: Any, settings: OllamaModelsSettings) -> None:
    """A tag may be moved by its publisher: only the digest says that it is the model that was approved."""
    found = _found(host, settings)
    pinned = [model for model in wanted(settings) if model.digest]
    if not pinned:
        raise NotApplicable("no model is pinned by its digest")
    wrong = [
        f"{model.source} is sha256:{have}, not sha256:{model.digest}" if have else f"{model.source} is missing"
        for model in pinned
        if model.source and (have := found.digest(model.source)) != model.digest
    ]
    assert not wrong, "; ".join(wrong)


@control("OLLM-03", "System prompts and parameters are the declared ones", severity="high")
def test_parameters(host: Any, settings: OllamaModelsSettings) -> None:
    """A context length decides how much memory is needed and what is forgotten; a system prompt, what is answered."""
    found = _found(host, settings)
    models = [model for model in wanted(settings) if model.layers and model.name.key in found.models]
    if not models:
        raise NotApplicable("no model has parameters of its own")
    address, _ = _server(host)
    wrong = [text for model in models for text in _differences(host, address, model)]
    assert not wrong, "; ".join(wrong)


def _differences(host: Any, address: str, model: Wanted) -> list[str]:
    body = shlex.quote(json.dumps({"model": str(model.name)}))
    answer = host.run(f"{CURL} --fail --max-time 30 --data-binary {body} http://{shlex.quote(address)}/api/show")
    if answer.rc:
        return [f"{model.name} cannot be shown: {answer.stderr.strip()}"]
    shown = json.loads(answer.stdout)
    have = parameters(shown.get("parameters") or "")
    wrong = [
        f"{model.name}: {name} is {have.get(name, 'not set')}, not {value}"
        for name, value in model.layers.get("parameters", {}).items()
        if have.get(name) != value
    ]
    wrong += [
        f"{model.name}: its {kind} is another text"
        for kind in ("system", "template")
        if kind in model.layers and shown.get(kind) != model.layers[kind]
    ]
    return wrong


def parameters(text: str) -> dict[str, Any]:
    """Return the parameters in an answer of /api/show: a name and a Go value a line, a list as several lines."""
    found: dict[str, Any] = {}
    for line in text.splitlines():
        name, _, raw = line.partition(" ")
        try:
            value = json.loads(raw.strip())
        except ValueError:
            value = raw.strip()
        if name == "stop":
            found.setdefault(name, []).append(value)
        else:
            found[name] = value
    return found


@control("OLLM-04", "Models made here are as they were made, of the declared source", severity="medium")
def test_made_models(host: Any, settings: OllamaModelsSettings) -> None:
    """Somebody's `ollama create` under a declared name, or a base pulled anew, makes another model of it."""
    found = _found(host, settings)
    made = [model for model in wanted(settings) if model.is_made and model.name.key in found.models]
    if not made:
        raise NotApplicable("no declared model is made on the host")
    wrong = [str(model.name) for model in made if not plan.is_current(model, found)]
    assert not wrong, f"made otherwise than declared, or changed since: {', '.join(wrong)}"


@control("OLLM-05", "No other model is there", severity="low")
def test_no_other_models(host: Any, settings: OllamaModelsSettings) -> None:
    """A model that nobody declared takes room, and answers questions that nobody approved it for."""
    found = _found(host, settings)
    gone = absent(settings)
    there = [str(name) for name in gone if name.key in found.models]
    assert not there, f"declared absent, and there: {', '.join(there)}"
    others = ", ".join(f"{model.name} ({size(model.size)})" for model in plan.unlisted(wanted(settings), gone, found))
    if others and not settings.remove_unlisted:
        raise NotApplicable(f"remove_unlisted is off; not declared: {others}")
    assert not others, f"not declared: {others}"


@control("OLLM-06", "The models' disk has its reserve", severity="medium", satisfies=["ISO 27001 A.8.6"])
def test_disk_reserve(host: Any, settings: OllamaModelsSettings) -> None:
    """A full disk stops logs and updates first, and where Docker's data is on it too, the whole service."""
    free = _found(host, settings).disk.free
    assert free >= settings.disk_reserve_gib * GIB, (
        f"{size(free)} are free, and disk_reserve_gib is {settings.disk_reserve_gib}"
    )


@control("OLLM-07", "Models to be preloaded are in memory", severity="medium")
def test_preloaded(host: Any, settings: OllamaModelsSettings) -> None:
    """The first question to a model that is not loaded waits for it: a minute for 40 GB from an NVMe disk."""
    found = _found(host, settings)
    models = [model for model in wanted(settings) if model.keep_alive == "forever"]
    if not models:
        raise NotApplicable("no model is kept in memory for ever")
    wrong = [str(model.name) for model in models if not plan.is_loaded(model, found)]
    assert not wrong, f"not in memory, or not for ever: {', '.join(wrong)}"
