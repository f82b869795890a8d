"""Settings, Compose file, facts and refusals of the anythingllm role."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from gpurack.anythingllm.state import Data, Wanted, fingerprint, needs_restore_point, obstacles
from gpurack.facts.anythingllm import AnythingllmData, AnythingllmInstance, AnythingllmPreferences, searches_as
from gpurack.rendering import render
from roles.anythingllm.settings import AnythingllmSettings


@pytest.fixture
def secret(tmp_path: Path) -> dict[str, str]:
    """Return a reference to a secret that fits everywhere."""
    path = tmp_path / "secret"
    path.write_text("k" * 40)
    return {"file": str(path)}


def made(secret: dict[str, str], **values: Any) -> AnythingllmSettings:
    """Return settings whose secrets are all in one file."""
    names = ("sig_key", "sig_salt", "jwt_secret", "auth_token")
    admin = {"password": secret}
    return AnythingllmSettings(
        **{"enabled": True, "model": "m:1", "admin": admin, **dict.fromkeys(names, secret), **values}
    )


def test_it_is_off_unless_asked_for_and_then_needs_a_model() -> None:
    assert not AnythingllmSettings().enabled
    with pytest.raises(ValidationError, match="model is required"):
        AnythingllmSettings(enabled=True)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"workspaces": {"legal": {"members": ["bbo"]}}}, "bbo is not in users; did you mean bob?"),
        ({"workspaces": {"legal": {"members": ["bob", "bob"]}}}, "bob is a member twice"),
        ({"workspaces": {"legal": {"name": "Law"}, "law": {}}}, "have the same name"),
        ({"workspaces": {"Legal Dept": {}}}, "String should match pattern"),
        ({"users": {"admin": {"password": {"env": "X"}}}}, "is the administrator already"),
        ({"users": {"Bob": {"password": {"env": "X"}}}}, "String should match pattern"),
        ({"api_keys": ["a", "a"]}, "a name is there twice"),
        ({"api_keys": ["gpurack"]}, "gpurack's own key"),
        ({"vector_database": {"kind": "pgvector"}}, "pgvector needs secret"),
        ({"vector_database": {"endpoint": "http://x:1"}}, "lancedb has no endpoint"),
        ({"ollama_url": "http://ollama:11434/"}, "String should match pattern"),
        ({"ready_timeout": 0}, "one second or more"),
    ],
)
def test_wrong_settings_are_refused(secret: dict[str, str], values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        made(secret, **{"users": {"bob": {"password": secret}}, **values})


def test_an_absent_model_and_a_port_claimed_twice_are_problems(secret: dict[str, str]) -> None:
    settings = made(secret, model="deepseek-r1:7b", publish_port=11434, workspaces={"legal": {"model": "gone"}})
    models = {"DeepSeek-R1:7b": {}, "gone": {"state": "absent"}}
    found = dict(settings.problems_on("h", {"ollama": {}, "ollama_models": {"models": models}}))
    assert "ollama.publish_port is 11434 too" in found[("publish_port",)]
    assert "does not declare it" in found[("workspaces", "legal", "model")]
    assert len(found) == 2
    assert not list(made(secret).problems_on("h", {"ollama_models": {"models": {"m:1": {}}}}))
    elsewhere = made(secret, ollama_url="http://gpu2:11434", publish_port=11434)
    assert not list(elsewhere.problems_on("h", {"ollama": {"enabled": False}, "ollama_models": {"models": models}}))
    [(location, message)] = made(secret).problems_on("h", {"ollama": {"enabled": False}})
    assert location == ("ollama_url",) and "is disabled on this host" in message


@pytest.mark.parametrize("bad", ["x" * 40 + "#", "x" * 40 + "'", "x" * 20 + " " + "x" * 20, "x" * 40 + "$HOME"])
def test_secrets_that_anythingllm_would_cut_are_problems(secret: dict[str, str], tmp_path: Path, bad: str) -> None:
    (tmp_path / "bad").write_text(bad)
    found = dict(made(secret, sig_salt={"file": str(tmp_path / "bad")}).problems_on("h", {}))
    assert "would cut it" in found[("sig_salt",)] and bad not in str(found)


def test_the_compose_file_names_secrets_and_holds_none(secret: dict[str, str]) -> None:
    settings = made(secret, vector_database={"kind": "pgvector", "secret": secret})
    text = render("templates/anythingllm/compose.yaml.j2", settings=settings, secrets=settings.secret_environment)
    assert "k" * 40 not in text
    assert "SIG_KEY: ${SIG_KEY:?is not in .env}" in text and "PGVECTOR_CONNECTION_STRING: ${" in text
    assert 'user: "1000:1000"' in text and "cap_add" not in text and '"127.0.0.1:3001:3001"' in text
    wide = made(secret, web_collector=True, publish_address="::1")
    text = render("templates/anythingllm/compose.yaml.j2", settings=wide, secrets=())
    assert "cap_add:\n      - SYS_ADMIN\n" in text and '"[::1]:3001:3001"' in text


@pytest.mark.parametrize(
    ("values", "plain", "hidden"),
    [
        ({}, {"VECTOR_DB": "lancedb"}, {}),
        ({"kind": "chroma"}, {"VECTOR_DB": "chroma", "CHROMA_ENDPOINT": "http://chroma:8000"}, {}),
        ({"kind": "qdrant", "secret": 1}, {"QDRANT_ENDPOINT": "http://qdrant:6333"}, {"QDRANT_API_KEY": "k" * 40}),
        ({"kind": "milvus", "user": "u"}, {"MILVUS_ADDRESS": "http://milvus:19530", "MILVUS_USERNAME": "u"}, {}),
        (
            {"kind": "pgvector", "secret": 1},
            {"VECTOR_DB": "pgvector"},
            {"PGVECTOR_CONNECTION_STRING": f"postgresql://anythingllm:{'k' * 40}@pgvector:5432/anythingllm"},
        ),
    ],
)
def test_vector_databases_have_anythingllms_names(
    secret: dict[str, str], values: dict[str, Any], plain: dict[str, str], hidden: dict[str, str]
) -> None:
    if "secret" in values:
        values = {**values, "secret": secret}
    database = made(secret, vector_database=values).vector_database
    assert plain.items() <= database.environment.items()
    assert database.secret_environment == hidden


WANTED = Wanted(keys="a", embedder="native lancedb", image_ids=frozenset({"sha256:1"}), data_dir="/srv/a")
GOOD = {"database_bytes": 1, "env_kind": "file", "noted_keys": "a", "reference": "r:1", "embedder": "native lancedb"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"noted_keys": "b"}, "are not the ones this host's data was made with"),
        ({"noted_keys": None, "env_keys": "b"}, "are not the ones in it"),
        ({"noted_keys": None}, "cannot be compared"),
        ({"database_bytes": 0}, "has no database, and this host served one"),
        ({"database_bytes": 0, "points": ["1", "2"]}, "/srv/a/restore-points/2"),
        ({"env_kind": "directory"}, "is a directory"),
        ({"env_kind": "none"}, "is gone"),
        ({"embedder": "ollama:x lancedb", "vectors": 3}, "3 pieces of documents were made by ollama:x lancedb"),
        ({"refused": "sha256:1 r:2, today: bad"}, "taken back (r:2, today: bad)"),
    ],
)
def test_what_would_lose_data_is_refused(values: dict[str, Any], message: str) -> None:
    [reason] = obstacles(Data(**{**GOOD, **values}), WANTED)
    assert message in reason


def test_nothing_is_refused_without_a_loss() -> None:
    assert not list(obstacles(Data(), WANTED))
    assert not list(obstacles(Data(noted_keys="a"), WANTED)), "cut off before the first start"
    assert not list(obstacles(Data(**GOOD), WANTED))
    assert not list(obstacles(Data(**{**GOOD, "noted_keys": None, "env_keys": "a", "reference": None}), WANTED))
    assert not list(obstacles(Data(**{**GOOD, "embedder": "other"}), WANTED)), "no documents"
    assert not list(obstacles(Data(**{**GOOD, "refused": "sha256:2 x"}), WANTED)), "another release"
    assert not list(obstacles(Data(**{**GOOD, "database_bytes": 0, "pending": "p rollback"}), WANTED))


@given(image_id=st.sampled_from([None, "1", "2"]), noted=st.sampled_from([None, "1", "2"]), size=st.integers(0, 2))
def test_no_image_but_the_noted_one_meets_data_without_a_restore_point(
    image_id: str | None, noted: str | None, size: int
) -> None:
    needed = needs_restore_point(Data(database_bytes=size, image_id=noted), image_id)
    assert needed is (size > 0 and (image_id is None or image_id != noted))


@given(st.text(), st.text(), st.text(), st.text())
def test_other_keys_have_other_fingerprints(key: str, salt: str, key2: str, salt2: str) -> None:
    if all("\n" not in text for text in (key, salt, key2, salt2)):
        same = (key, salt) == (key2, salt2)
        assert (fingerprint(key, salt) == fingerprint(key2, salt2)) is same


def test_the_data_fact_reads_what_the_host_prints() -> None:
    lines = """database 4096
env file
owner 1000:1000 700 /srv/a b/storage
stray /srv/a b/storage/x
env_keys abc  -
noted_keys def
reference r:1
image_id sha256:1
embedder native lancedb
pending 2026 switch
point 2026
vectors 3"""
    data = AnythingllmData().process(lines.splitlines())
    assert data.exists and data.env_keys == "abc" and data.noted_keys == "def" and data.vectors == 3
    assert data.owners == {"/srv/a b/storage": "1000:1000 700"} and data.stray == "/srv/a b/storage/x"
    assert (data.reference, data.image_id, data.embedder) == ("r:1", "sha256:1", "native lancedb")
    assert data.pending == "2026 switch" and data.points == ["2026"] and data.refused is None


@given(st.lists(st.text()))
def test_the_instance_fact_takes_any_answer(lines: list[str]) -> None:
    kinds = ("mode ", "auth ", "users ", "workspaces ", "key a ")
    found = AnythingllmInstance().process([kind + line for kind in kinds for line in lines])
    assert not found.authorised


def test_the_instance_fact_reads_answers() -> None:
    lines = [
        'mode {"multiUserMode":true}',
        'auth {"authenticated":true}',
        "users " + json.dumps({"users": [{"id": 1, "username": "ada"}]}),
        "workspaces " + json.dumps({"workspaces": [{"id": 7, "slug": "legal"}]}),
        "members 7 " + json.dumps({"users": [{"userId": 1, "username": "ada"}]}),
        'key gateway {"authenticated":true}',
        "key old ",
        "loose /var/x y",
    ]
    found = AnythingllmInstance().process(lines)
    assert found.multi_user and found.authorised and found.members == {"legal": {"ada"}}
    assert found.keys == {"gateway": True, "old": False} and found.loose == ["/var/x y"]


def test_agents_search_only_where_it_is_wanted() -> None:
    """Without a provider AnythingLLM asks DuckDuckGo: what counts for off is the skill."""
    on = {"agent_search_provider": "searxng-engine", "default_agent_skills": '["sql-agent","web-browsing"]'}
    assert searches_as(on, True) and not searches_as(on, False)
    assert not searches_as({**on, "agent_search_provider": "duckduckgo-engine"}, True)
    for off in ({}, {"default_agent_skills": "[]"}, {"default_agent_skills": "{broken"}, {"default_agent_skills": "7"}):
        assert searches_as(off, False) and not searches_as(off, True)
    read = AnythingllmPreferences().process([f"{label} {value}" for label, value in on.items()])
    assert read == on
