"""Images of the vectordb and searxng roles for test hosts; see tests/doubles/vectordb."""

from __future__ import annotations

from typing import Any

from gpurack.catalogue import catalogue
from gpurack.lab.double_image import DOUBLES, PYTHON, DoubleImage, ImageFile

SOURCES = DOUBLES / "vectordb"
SHELL = ("base-files", "bash", "dash", "coreutils", "grep", "sed")
PORTS = {"chroma": 8000, "milvus": 19530, "qdrant": 6333, "searxng": 8080}


def archives(*names: str) -> dict[str, str]:
    """Return ``images.archives`` with these images of the catalogue, each built if it is not cached."""
    return {name: str(_image(name).archive()) for name in names}


def _image(name: str) -> DoubleImage:
    known = catalogue()[name]
    parts: dict[str, Any]
    if name == "pgvector":
        parts = _postgres()
    elif name == "valkey":
        parts = {"packages": ("base-files", "valkey-server", "valkey-tools"), "files": (), "config": {}}
    else:
        parts = _double(name)
    return DoubleImage(repository=known.repository, version=known.tag, **parts)


def _postgres() -> dict[str, Any]:
    wrapper = '#!/bin/sh\nexec /usr/lib/postgresql/17/bin/{} "$@"\n'
    tools = [ImageFile(f"/usr/local/bin/{tool}", wrapper.format(tool).encode()) for tool in ("psql", "pg_isready")]
    return {
        "packages": (*SHELL, "postgresql-17", "postgresql-17-pgvector"),
        "files": (
            ImageFile(
                "/etc/passwd", b"root:x:0:0::/root:/bin/sh\npostgres:x:999:999::/var/lib/postgresql:/bin/sh\n", 0o644
            ),
            ImageFile("/var/run/postgresql", None, 0o1777, 999),
            ImageFile("/usr/local/bin/postgres.sh", (SOURCES / "postgres.sh").read_bytes()),
            *tools,
        ),
        "config": {
            "Entrypoint": ["/usr/local/bin/postgres.sh"],
            "ExposedPorts": {"5432/tcp": {}},
            "StopSignal": "SIGINT",
        },
    }


def _double(name: str) -> dict[str, Any]:
    """Return a double; as real ones it has curl, wget, or only bash to tell its health with."""
    tools = {"qdrant": (), "searxng": ("wget",)}.get(name, ("curl",))
    program = "/usr/bin/milvus" if name == "milvus" else "/usr/local/bin/server"
    source = b"#!/usr/bin/python3\n" + (SOURCES / "server.py").read_bytes()
    folders = [ImageFile("/qdrant", None)] if name == "qdrant" else []
    return {
        "packages": (*PYTHON, *SHELL, *tools),
        "files": (ImageFile(program, source), *folders),
        "config": {
            "Env": [f"DOUBLE={name}"],
            "ExposedPorts": {f"{PORTS[name]}/tcp": {}},
            **({"Cmd": ["milvus"]} if name == "milvus" else {"Entrypoint": [program]}),
            **({"WorkingDir": "/qdrant"} if name == "qdrant" else {}),
        },
    }
