"""What settings of the ollama_models role are refused, and why."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from roles.ollama_models.settings import OllamaModelsSettings

DIGEST = "a" * 64


def settings(**models: Any) -> OllamaModelsSettings:
    """Return settings with models."""
    return OllamaModelsSettings(models=models)


def refusal(values: dict[str, Any]) -> str:
    """Return why settings are refused."""
    with pytest.raises(ValidationError) as caught:
        OllamaModelsSettings(**values)
    return str(caught.value)


@pytest.mark.parametrize(
    ("model", "why"),
    [
        ({"digest": "a" * 12}, "all 64 digits"),
        ({"digest": "latest"}, "expected sha256:"),
        ({"base": "b", "gguf": "x.gguf"}, "one of base and gguf"),
        ({"sha256": DIGEST}, "needs gguf"),
        ({"quantize": "q4_K_M"}, "needs gguf or safetensors"),
        ({"gguf": "x.gguf", "digest": DIGEST}, "pin a file with sha256"),
        ({"keep_alive": "PT5M"}, "needs preload"),
        ({"preload": True, "keep_alive": "PT0S"}, "one second or more"),
        ({"state": "absent", "preload": True}, "an absent model has no preload"),
        ({"parameters": {"num_ctx": 0}}, "greater than or equal to 1"),
        ({"parameters": {"num_cxt": 8192}}, "Extra inputs"),
        ({"base": "q:cloud"}, "leaves the building"),
        ({"base": "m"}, "base is its own name"),
        ({"system": ""}, "at least 1 character"),
    ],
)
def test_wrong_models_are_refused(model: dict[str, Any], why: str) -> None:
    assert why in refusal({"models": {"m": model}})


@pytest.mark.parametrize(
    ("models", "why"),
    [
        ({"m": {}, "M:latest": {}}, "'m' and 'M:latest' are the same model"),
        ({"a b": {}}, "'a b': model 'a b'"),
        ({"gpt-oss:20b-cloud": {}}, "leaves the building"),
        ({"base-of.registry.ollama.ai/library/m": {}}, "gpurack's own"),
        ({"m": {"base": "b"}, "b": {"state": "absent"}}, "is declared absent"),
        ({"m": {"base": "b"}, "b": {"base": "c"}}, "name c:latest as base of both"),
    ],
)
def test_wrong_names_are_refused(models: dict[str, Any], why: str) -> None:
    assert why in refusal({"models": models})


def test_names_get_their_tag_and_digests_their_algorithm() -> None:
    [(name, model)] = settings(m={"digest": DIGEST}).models.items()
    assert (name, model.digest) == ("m:latest", f"sha256:{DIGEST}")
    assert not model.is_derived


def test_only_given_parameters_are_declared() -> None:
    model = settings(m={"parameters": {"num_ctx": 8192, "stop": ["</s>"]}}).models["m:latest"]
    assert model.parameters.declared == {"num_ctx": 8192, "stop": ["</s>"]} and model.is_derived


def test_models_without_their_server_or_room_in_it_are_problems() -> None:
    wanted = settings(a={"preload": True}, b={"preload": True})
    assert [text for _, text in wanted.problems_on("h", {"ollama": {"enabled": False}})] == [
        "role ollama is disabled on this host: nothing could serve them"
    ]
    [(_, text)] = wanted.problems_on("h", {"ollama": {"max_loaded_models": 1}})
    assert "max_loaded_models is 1" in text
    assert not list(wanted.problems_on("h", {}))
