"""The vectordb role on a real host: a real PostgreSQL with pgvector, doubles of the others (tests/doubles/vectordb)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.testbed.vectordb import archives

pytestmark = pytest.mark.host

DATABASES = ("pgvector", "chroma", "milvus", "qdrant")
SECRETS = {
    "pgvector": "pg-canary-$k2#9 x%{y}-0000",  # what shells, Compose and URLs would read as something else
    "milvus": "milvus-canary-0000000000",
    "qdrant": "qdrant-canary-000000000000000000",
}
CHROMA = "/api/v2/tenants/default_tenant/databases/default_database/collections"
PSQL = "docker exec --interactive pgvector-pgvector-1 psql --username anythingllm --tuples-only --no-align anythingllm"

FILL = """\
CREATE EXTENSION IF NOT EXISTS vector;
CREATE TABLE documents (id INT PRIMARY KEY, embedding vector(3), metadata JSONB);
INSERT INTO documents VALUES (1, '[1,0,0]', '{}'), (2, '[0,1,0]', '{}'), (3, '[0.9,0.1,0]', '{}');
CREATE INDEX ON documents USING hnsw (embedding vector_cosine_ops);
"""
NEAREST = "SELECT id FROM documents ORDER BY embedding <=> '[0.88,0.12,0]' LIMIT 2;"


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with a file for each secret."""
    folder = Path(tmp_path_factory.mktemp("secrets"))
    for name, value in SECRETS.items():
        (folder / name).write_text(value)
    return folder


@pytest.fixture(scope="module")
def machine(machines: Any) -> Any:
    """Return one host: the roles say the same to Docker on both releases, and what is tested is in the containers."""
    return machines(release="trixie")[0]


@pytest.fixture(scope="module")
def site(machine: Any, site_for: Any, secrets: Path) -> Any:
    """Return a site of one host whose first run brought up all four databases."""
    vectordb = {
        "pgvector": {"password": {"file": str(secrets / "pgvector")}},
        "chroma": {},
        "milvus": {"password": {"file": str(secrets / "milvus")}},
        "qdrant": {"api_key": {"file": str(secrets / "qdrant")}, "publish": {"port": 6333}},
        "health_interval": "PT1S",
        "health_start_period": "PT20S",
        "ready_timeout": "PT60S",
    }
    site = site_for(machine, {"docker": {}, "vectordb": vectordb, "images": {"archives": archives(*DATABASES)}})
    first = site.run("docker", "vectordb", args=["-vvv", "--diff"])
    assert first.ok, first.output
    assert not [value for value in SECRETS.values() if value in first.output]
    return site


def changed(run: Any, machine: Any) -> int:
    """Return how many operations changed something in a run that must succeed."""
    assert run.ok, run.output
    return int(run.changed[machine.name])


def sql(machine: Any, statements: str) -> str:
    """Run statements in PostgreSQL and return what they print."""
    return str(machine.ssh(f"{PSQL} <<'END'\n{statements}\nEND").stdout)


def ask(machine: Any, name: str, port: int, path: str, body: Any = None, header: str = "X-None: 1") -> Any:
    """Ask a database over the services' network, with a body by POST, and return its answer."""
    inspect = '{{(index .NetworkSettings.Networks "gpurack").IPAddress}}'
    address = f"$(docker inspect --format '{inspect}' {name}-{name}-1)"
    method = f"--data '{json.dumps(body)}'" if body is not None else ""
    return json.loads(machine.ssh(f"curl -s --max-time 10 -H '{header}' {method} http://{address}:{port}{path}").stdout)


def test_first_run_satisfies_every_control_and_second_changes_nothing(site: Any, machine: Any) -> None:
    site.assert_controls("vectordb", machine)
    assert changed(site.run("docker", "vectordb"), machine) == 0


def test_an_embedding_is_found_by_its_nearest_neighbour(site: Any, machine: Any) -> None:
    """The statements of AnythingLLM's own provider: extension, table, insert, cosine distance."""
    sql(machine, FILL)
    assert sql(machine, NEAREST).split()[-2:] == ["3", "1"]


def test_the_others_keep_and_find_too(site: Any, machine: Any) -> None:
    ask(machine, "chroma", 8000, CHROMA, {"name": "documents"})
    ask(machine, "chroma", 8000, f"{CHROMA}/documents/add", {"ids": ["a", "b"], "embeddings": [[1, 0], [0, 1]]})
    query = {"query_embeddings": [[0.9, 0]], "n_results": 1}
    assert ask(machine, "chroma", 8000, f"{CHROMA}/documents/query", query) == {"ids": [["a"]]}
    token = f"Authorization: Bearer root:{SECRETS['milvus']}"
    rows = [{"id": 1, "vector": [1, 0]}, {"id": 2, "vector": [0, 1]}]
    entities = "/v2/vectordb/entities"
    ask(machine, "milvus", 19530, "/v2/vectordb/collections/create", {"collectionName": "d", "dimension": 2}, token)
    ask(machine, "milvus", 19530, f"{entities}/insert", {"collectionName": "d", "data": rows}, token)
    found = ask(
        machine, "milvus", 19530, f"{entities}/search", {"collectionName": "d", "data": [[0, 1]], "limit": 1}, token
    )
    assert found["data"] == [{"id": 2}]
    refused = ask(machine, "milvus", 19530, f"{entities}/search", {"collectionName": "d", "data": [[0, 1]]})
    assert refused["code"] == 1800
    key = f"api-key: {SECRETS['qdrant']}"
    ask(machine, "qdrant", 6333, "/collections/d", {"vectors": {"size": 2, "distance": "Cosine"}}, key)
    ask(machine, "qdrant", 6333, "/collections/d/points", {"points": rows}, key)
    found = ask(machine, "qdrant", 6333, "/collections/d/points/query", {"query": [1, 0], "limit": 1}, key)
    assert found["result"]["points"] == [{"id": 1}]


def test_nothing_runs_as_root_or_is_published_but_what_was_asked_for(site: Any, machine: Any) -> None:
    users = machine.ssh("for c in pgvector chroma qdrant; do docker exec $c-$c-1 id -u; done").stdout.split()
    assert users == ["999", "1000", "1000"]
    listening = machine.ssh("ss -Hltn | awk '{print $4}'").stdout.split()
    assert "127.0.0.1:6333" in listening
    assert not [item for item in listening if item.endswith((":5432", ":8000", ":19530", ":9091", ":2379"))]


def recreate(name: str, expression: str) -> str:
    """Return a command that changes a project's file and brings the project up with it."""
    path = f"/etc/gpurack/compose/{name}/compose.yaml"
    return f"sed -i '{expression}' {path} && docker compose --file {path} up --detach --wait --quiet-pull"


BREAKAGES = {
    "stopped": ("docker stop --time 1 milvus-milvus-1", {"VECT-01"}),
    "published": (
        recreate("pgvector", 's/    networks:/    ports: ["5432:5432"]\\n    networks:\\n      default:/'),
        {"VECT-03"},
    ),
    "rights": (recreate("qdrant", "s/    cap_drop:/    cap_add: [SYS_ADMIN]\\n    cap_drop:/"), {"VECT-04"}),
    "data": ("chmod 755 /srv/vectordb/pgvector", {"VECT-05"}),
    "secret": (
        "printf \"QDRANT__SERVICE__API_KEY='other'\\n\" >/etc/gpurack/compose/qdrant/.env && "
        "docker compose --file /etc/gpurack/compose/qdrant/compose.yaml up --detach --wait",
        {"VECT-06"},
    ),
    "secret-file": ("chmod 644 /etc/gpurack/compose/milvus/.env", {"VECT-06"}),
    "network": (recreate("chroma", "s/^      gpurack:/      default:/; /aliases/d"), {"VECT-08"}),
    "password": (f"{PSQL} --command \"ALTER ROLE anythingllm PASSWORD 'other'\"", {"VECT-09"}),
    "image": (
        "name=$(docker inspect --format '{{.Config.Image}}' chroma-chroma-1) && docker tag $name kept:1 && "
        "docker image rm --no-prune $name",
        {"VECT-02"},
    ),
}


def test_each_breakage_is_seen_by_its_control_alone_and_one_run_repairs_all(site: Any, machine: Any) -> None:
    expected: set[str] = set()
    for name, (breakage, controls) in BREAKAGES.items():
        machine.ssh(breakage)
        expected |= controls
        assert site.failing("vectordb", machine) == expected, name
    assert changed(site.run("vectordb"), machine) > 0
    site.assert_controls("vectordb", machine)


def test_anybody_let_in_is_seen(site: Any, machine: Any) -> None:
    """A pg_hba.conf that trusts the network is nothing the role writes: it is seen, and cured by hand."""
    hba = "/srv/vectordb/pgvector/data/pgdata/pg_hba.conf"
    reload = f'{PSQL} --command "SELECT pg_reload_conf()"'
    machine.ssh(f"sed -i.kept 's/^host all all all .*/host all all all trust/' {hba} && {reload} && sleep 0.5")
    assert site.failing("vectordb", machine) == {"VECT-09"}
    machine.ssh(f"mv {hba}.kept {hba} && chown 999:999 {hba} && {reload} && sleep 0.5")
    site.assert_controls("vectordb", machine)


def test_rotated_secrets_reach_the_databases_and_data_stays(site: Any, machine: Any, secrets: Path) -> None:
    (secrets / "pgvector").write_text("pg-canary-new-00000000000")
    (secrets / "qdrant").write_text("qdrant-canary-new-00000000000000000")
    run = site.run("vectordb", args=["-vvv", "--diff"])
    assert changed(run, machine) == 5, run.output
    assert "canary-new" not in run.output
    site.assert_controls("vectordb", machine)
    assert sql(machine, NEAREST).split()[-2:] == ["3", "1"]
    query = {"query": [1, 0], "limit": 1}
    found = ask(
        machine, "qdrant", 6333, "/collections/d/points/query", query, "api-key: qdrant-canary-new-00000000000000000"
    )
    assert found["result"]["points"] == [{"id": 1}]
    assert changed(site.run("vectordb"), machine) == 0


def test_one_taken_out_of_the_settings_stays_and_is_named(site: Any, machine: Any) -> None:
    site.settings["vectordb"].pop("chroma")
    assert changed(site.run("vectordb"), machine) == 0
    assert site.failing("vectordb", machine) == {"VECT-07"}
    machine.ssh("docker compose --project-name chroma down")
    site.assert_controls("vectordb", machine)
    assert machine.ssh("ls /srv/vectordb/chroma/data").stdout.split() == ["double.json"]
