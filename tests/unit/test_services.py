"""Settings and Compose files of the roles vectordb and searxng, and what they share."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from gpurack.rendering import render
from gpurack.secrets import Secret
from gpurack.service import UNFIT, env_file, port_clashes
from roles.searxng.config import checksum, config_files
from roles.searxng.settings import SearxngSettings
from roles.vectordb.services import services
from roles.vectordb.settings import NAMES, VectordbSettings

LONG = "x" * 40


def vectordb(monkeypatch: pytest.MonkeyPatch, **values: Any) -> VectordbSettings:
    """Return settings of all four databases with their secrets in the environment."""
    monkeypatch.setenv("DB_SECRET", LONG)
    secret = {"env": "DB_SECRET"}
    every = {
        "pgvector": {"password": secret},
        "chroma": {},
        "milvus": {"password": secret},
        "qdrant": {"api_key": secret},
    }
    return VectordbSettings.model_validate({**every, **values})


def test_no_database_is_chosen_unless_it_is_named() -> None:
    assert VectordbSettings().databases == {} and VectordbSettings().image_names == ()
    assert list(services(VectordbSettings())) == []


def test_each_project_publishes_nothing_and_holds_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = vectordb(monkeypatch)
    assert settings.image_names == NAMES
    for service in services(settings):
        text = render("templates/vectordb/compose.yaml.j2", settings=settings, service=service, publish=None)
        assert "ports:" not in text and LONG not in text and LONG not in repr(service)
        assert "no-new-privileges:true" in text and "pull_policy: never" in text
        assert ("cap_drop" in text) == (service.name != "milvus")
        assert settings.images.reference(service.image) in text
        for name in service.secrets:
            assert f"{name}: ${{{name}:?is not in .env}}" in text


def test_the_same_port_twice_is_found_wherever_it_is() -> None:
    publish = {"publish": {"port": 6333}}
    data = {"vectordb": {"qdrant": publish, "chroma": {"publish": {"port": 6333, "address": "::"}}}}
    found = dict(port_clashes("vectordb", data))
    assert set(found) == {("qdrant", "publish", "port"), ("chroma", "publish", "port")}
    assert "vectordb.chroma.publish has port 6333 too" in found["qdrant", "publish", "port"]
    ollama = {"vectordb": {"qdrant": {"publish": {"port": 11434}}}}
    assert len(list(port_clashes("vectordb", ollama))) == 1
    assert not list(port_clashes("vectordb", {**ollama, "ollama": {"enabled": False}}))
    assert not list(port_clashes("vectordb", {**ollama, "ollama": {"publish_address": "10.0.0.1"}}))
    both = {"vectordb": {"qdrant": publish}, "searxng": {"enabled": True, **publish}}
    assert next(iter(port_clashes("searxng", both)))[0] == ("publish", "port")
    assert not list(port_clashes("vectordb", {"vectordb": {"qdrant": publish}, "searxng": publish}))


RAW = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.dictionaries(st.sampled_from(["publish", "port", "address", "enabled", "qdrant"]), inner),
)


@given(st.dictionaries(st.sampled_from(["ollama", "anythingllm", "vectordb", "searxng"]), RAW))
def test_wrong_settings_elsewhere_do_not_break_the_search_for_ports(data: dict[str, Any]) -> None:
    assert isinstance(list(port_clashes("vectordb", data)), list)


@given(st.dictionaries(st.sampled_from(["A", "B"]), st.text(max_size=20)))
def test_an_env_file_holds_a_value_as_it_is_or_refuses_it(values: dict[str, str]) -> None:
    if any(UNFIT.search(value) for value in values.values()):
        with pytest.raises(ValueError, match="cannot be in this secret"):
            env_file(values)
    else:
        assert env_file(values) == "".join(f"{name}='{value}'\n" for name, value in values.items())


def test_secrets_that_would_be_garbled_are_found_before(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = vectordb(monkeypatch)
    assert list(settings.problems_on("gpu1", {})) == []
    monkeypatch.setenv("DB_SECRET", LONG + "'")
    assert {location for location, _ in settings.problems_on("gpu1", {})} == {
        ("pgvector", "password"),
        ("milvus", "password"),
        ("qdrant", "api_key"),
    }
    monkeypatch.setenv("DB_SECRET", "y" * 73)
    [(location, message)] = settings.problems_on("gpu1", {})
    assert location == ("milvus", "password") and "6 to 72" in message


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"pgvector": {"user": "a b"}}, "pattern"),
        ({"pgvector": {"password": "hunter2"}}, "is not written here"),
        ({"qdrant": {"publish": {"port": 0}}}, "greater than or equal to 1"),
        ({"weaviate": {}}, "Extra inputs"),
        ({"data_dir": "/srv"}, "system directory"),
        ({"ready_timeout": "PT0S"}, "one second or more"),
    ],
)
def test_wrong_settings_of_databases(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        VectordbSettings.model_validate(values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"engines": []}, "at least 1"),
        ({"engines": ["bing", "bing"]}, "there twice"),
        ({"engines": ['bing"\n']}, "pattern"),
        ({"proxy": "proxy.example.org"}, "pattern"),
        ({"limiter_trusted": ["10.0.0.1/8"]}, "not a valid IPv4 network"),
    ],
)
def test_wrong_settings_of_the_search(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SearxngSettings.model_validate(values)


def test_settings_of_the_search_name_the_chosen_engines_alone() -> None:
    settings = SearxngSettings.model_validate(
        {"engines": ["wikipedia"], "limiter": True, "limiter_trusted": ["172.16.0.0/12", "fd00::/8"]}
    )
    files = config_files(settings)
    assert 'keep_only:\n      - "wikipedia"\n' in files["settings.yml"] and "    - json\n" in files["settings.yml"]
    assert "secret_key" not in files["settings.yml"]
    lists = tomllib.loads(files["limiter.toml"])["botdetection"]["ip_lists"]
    assert lists["pass_ip"] == ["172.16.0.0/12", "fd00::/8"]
    assert checksum(files) != checksum(config_files(SearxngSettings()))


def test_a_limiter_that_would_shut_the_agent_out_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY", "ab" * 32)
    data = {"anythingllm": {"enabled": True}}
    settings = SearxngSettings(enabled=True, limiter=True, secret_key=Secret("env", "KEY"))
    [(location, message)] = settings.problems_on("gpu1", data)
    assert location == ("limiter_trusted",) and "for a bot" in message
    assert not list(settings.problems_on("gpu1", {}))


def test_every_role_has_its_place() -> None:
    site = Path("deploys/site.py").read_text()
    assert site.index('"ollama"') < site.index('"vectordb"') < site.index('"searxng"')
