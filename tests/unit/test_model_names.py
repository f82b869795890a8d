"""Names of models: as Ollama reads and writes them."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpurack.ollama.names import ModelName

FIRST = string.ascii_letters + string.digits + "_"


def part(further: str, longest: int = 80) -> st.SearchStrategy[str]:
    """Return a strategy for parts of a name."""
    return st.builds(str.__add__, st.sampled_from(FIRST), st.text(FIRST + further, max_size=longest - 1))


NAMES = st.builds(ModelName, part("-.:", 60), part("-"), part("-."), part("-."))


@given(NAMES)
def test_what_is_written_is_read_back(name: ModelName) -> None:
    again = ModelName.parse(str(name))
    assert again.key == name.key and str(again) == str(name)
    assert ModelName.parse(f"{name.registry}/{name.namespace}/{name.model}:{name.tag}") == name


@given(NAMES)
def test_names_for_bases_and_kept_models_lead_back(name: ModelName) -> None:
    for other in (name.base, name.kept):
        assert other != name and ModelName.parse(str(other)) == other and other.origin == name.origin
    assert name.base.is_base and name.kept.is_kept and name.base.key != name.kept.key


@given(st.text(max_size=200))
def test_anything_is_a_name_or_refused_with_words(text: str) -> None:
    try:
        name = ModelName.parse(text)
    except ValueError as error:
        assert "expected" in str(error) or "has no" in str(error)
    else:
        assert ModelName.parse(str(name)).key == name.key
        assert ".." not in name.path.split("/") and not name.path.startswith("/")


@pytest.mark.parametrize(
    ("text", "shown", "path"),
    [
        ("deepseek-r1", "deepseek-r1:latest", "registry.ollama.ai/library/deepseek-r1/latest"),
        ("library/deepseek-r1:7b", "deepseek-r1:7b", "registry.ollama.ai/library/deepseek-r1/7b"),
        ("acme/r1:7b", "acme/r1:7b", "registry.ollama.ai/acme/r1/7b"),
        ("reg.example:5000/acme/r1", "reg.example:5000/acme/r1:latest", "reg.example:5000/acme/r1/latest"),
        ("hf.co/unsloth/R1-GGUF:Q4_K_M", "hf.co/unsloth/R1-GGUF:Q4_K_M", "hf.co/unsloth/R1-GGUF/Q4_K_M"),
    ],
)
def test_defaults_are_filled_in_and_left_out_again(text: str, shown: str, path: str) -> None:
    name = ModelName.parse(text)
    assert (str(name), name.path) == (shown, path)


def test_capital_letters_make_no_other_model() -> None:
    assert ModelName.parse("DeepSeek-R1:7B").key == ModelName.parse("deepseek-r1:7b").key


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "model ''"),
        ("a:", "tag ''"),
        ("/a", "namespace ''"),
        ("a b", "model 'a b'"),
        ("ns.with.dots/a", "namespace 'ns.with.dots'"),
        ("h/n/a/b", "too many slashes"),
        ("http://reg:5000/n/a", "no http://"),
        ("a@sha256:00", "no digest behind @"),
        ("../../etc/passwd", "slashes"),
        ("a:..", "tag '..'"),
        ("a" * 81, "model 'aaa"),
    ],
)
def test_wrong_names_say_which_part(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        ModelName.parse(text)
    assert why in str(caught.value)


@pytest.mark.parametrize(("text", "cloud"), [("gpt-oss:20b-cloud", True), ("q:cloud", True), ("my-cloud-model", False)])
def test_models_of_the_cloud_are_known(text: str, cloud: bool) -> None:
    assert ModelName.parse(text).in_cloud is cloud
