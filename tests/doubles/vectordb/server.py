"""Doubles of Chroma, Milvus, Qdrant and SearXNG: health, one write and one read of each documented HTTP API.

Which one is told by the environment variable DOUBLE. See README.md for what this does not prove.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sys
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

KIND = os.environ.get("DOUBLE", "")


def nearest(rows: list[dict[str, Any]], vector: list[float], limit: int) -> list[dict[str, Any]]:
    """Return the rows nearest to a vector, by squared distance."""
    return sorted(rows, key=lambda row: sum((a - b) ** 2 for a, b in zip(row["vector"], vector, strict=True)))[:limit]


@dataclass(frozen=True)
class Request:
    """What was asked."""

    method: str
    path: str
    body: dict[str, Any]
    query: dict[str, str]


class Data:
    """Rows by collection, kept in a file of the volume."""

    def __init__(self, folder: str) -> None:
        self.path = Path(folder) / "double.json"
        self.rows: dict[str, list[dict[str, Any]]] = json.loads(self.path.read_text()) if self.path.exists() else {}
        self.save()  # a volume that cannot be written stops the start, as with the real ones

    def save(self) -> None:
        self.path.write_text(json.dumps(self.rows))


class Server(BaseHTTPRequestHandler):
    """One request; subclasses answer."""

    data: ClassVar[Data]

    def reply(self, answer: object, status: int = 200) -> None:
        text = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length) or "{}")
        url = urlsplit(self.path)
        self.handle_request(Request(self.command, url.path, body, {k: v[0] for k, v in parse_qs(url.query).items()}))

    do_GET = do_PUT = do_POST = do_HEAD = answer  # noqa: N815 - names of http.server

    def handle_request(self, request: Request) -> None:
        raise NotImplementedError

    def log_message(self, format: str, *args: Any) -> None:
        del format, args


class Chroma(Server):
    """Chroma 1.x: API v2, no authentication."""

    BASE = "/api/v2/tenants/default_tenant/databases/default_database/collections"

    def handle_request(self, request: Request) -> None:
        if request.path == "/api/v2/heartbeat":
            self.reply({"nanosecond heartbeat": 1})
        elif request.path == self.BASE and request.method == "POST":
            self.data.rows.setdefault(request.body["name"], [])
            self.data.save()
            self.reply({"id": request.body["name"], "name": request.body["name"]})
        elif match := re.fullmatch(re.escape(self.BASE) + r"/([^/]+)/(add|query)", request.path):
            rows = self.data.rows[match[1]]
            if match[2] == "add":
                rows += [
                    {"id": i, "vector": v} for i, v in zip(request.body["ids"], request.body["embeddings"], strict=True)
                ]
                self.data.save()
                self.reply({}, 201)
            else:
                limit = request.body.get("n_results", 10)
                found = [[row["id"] for row in nearest(rows, v, limit)] for v in request.body["query_embeddings"]]
                self.reply({"ids": found})
        else:
            self.reply({"error": "NotFoundError"}, 404)


class Milvus(Server):
    """Milvus 2.6: RESTful API v2, a token of user and password where authorization is on."""

    def handle_request(self, request: Request) -> None:
        token = f"Bearer root:{os.environ.get('COMMON_SECURITY_DEFAULTROOTPASSWORD', 'Milvus')}"
        secured = os.environ.get("COMMON_SECURITY_AUTHORIZATIONENABLED") == "true"
        if secured and self.headers.get("Authorization") != token:
            self.reply({"code": 1800, "message": "user hasn't authenticated"}, 401)
            return
        name = request.body.get("collectionName", "")
        if request.path == "/v2/vectordb/collections/create":
            self.data.rows[name] = []
            self.reply({"code": 0, "data": {}})
        elif request.path == "/v2/vectordb/entities/insert":
            self.data.rows[name] += request.body["data"]
            self.reply({"code": 0, "data": {"insertCount": len(request.body["data"])}})
        elif request.path == "/v2/vectordb/entities/search":
            found = nearest(self.data.rows[name], request.body["data"][0], request.body.get("limit", 10))
            self.reply({"code": 0, "data": [{"id": row["id"]} for row in found]})
        else:
            self.reply("404 page not found", 404)
        self.data.save()


class Health(Server):
    """Milvus' second port."""

    def handle_request(self, request: Request) -> None:
        self.reply("OK", 200 if request.path == "/healthz" else 404)


class Qdrant(Server):
    """Qdrant 1.x: the key in a header, health without it."""

    def handle_request(self, request: Request) -> None:
        if request.path in ("/healthz", "/readyz", "/livez"):
            self.reply("all shards are ready")
            return
        key = os.environ.get("QDRANT__SERVICE__API_KEY")
        if key and self.headers.get("api-key") != key:
            self.reply("Must provide an API key or an Authorization bearer token", 401)
        elif request.path == "/collections":
            self.reply({"result": {"collections": [{"name": name} for name in self.data.rows]}})
        elif match := re.fullmatch(r"/collections/([^/]+)", request.path):
            self.data.rows.setdefault(match[1], [])
            self.reply({"result": True, "status": "ok"})
        elif match := re.fullmatch(r"/collections/([^/]+)/points", request.path):
            self.data.rows[match[1]] += request.body["points"]
            self.reply({"result": {"status": "completed"}})
        elif match := re.fullmatch(r"/collections/([^/]+)/points/query", request.path):
            found = nearest(self.data.rows[match[1]], request.body["query"], request.body.get("limit", 10))
            self.reply({"result": {"points": [{"id": row["id"]} for row in found]}})
        else:
            self.reply("not found", 404)
        self.data.save()


class Searxng(Server):
    """SearXNG: which engines there are, and an answer as JSON where settings.yml has the format."""

    settings: ClassVar[str]

    def handle_request(self, request: Request) -> None:
        engines = re.findall(r'^      - "(.*)"$', self.settings, re.MULTILINE)
        if request.path == "/healthz":
            self.reply("OK")
        elif request.path == "/config":
            self.reply({"engines": [{"name": name, "enabled": True} for name in engines]})
        elif request.path == "/search" and request.query.get("format") == "json":
            if "    - json\n" not in self.settings:
                self.reply("forbidden", 403)
                return
            result = {"url": "https://double.invalid/", "title": request.query.get("q"), "content": "test double"}
            self.reply({"query": request.query.get("q"), "results": [{**result, "engine": engines[0]}]})
        else:
            self.reply("not found", 404)


def serve(handler: type[Server], port: int) -> None:
    server = ThreadingHTTPServer(("0.0.0.0", port), handler)  # noqa: S104 - in a container
    threading.Thread(target=server.serve_forever, daemon=port == 9091).start()


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))  # process 1 of a container has no default handler
    print(f"gpurack test double of {KIND}", flush=True)
    if KIND == "chroma":
        Server.data = Data("/data")
        serve(Chroma, 8000)
    elif KIND == "milvus":
        wanted = {"ETCD_USE_EMBED": "true", "COMMON_STORAGETYPE": "local", "DEPLOY_MODE": "STANDALONE"}
        wrong = [name for name, value in wanted.items() if os.environ.get(name) != value]
        if wrong or sys.argv[1:] != ["run", "standalone"]:
            sys.exit(f"the double knows standalone with etcd inside and local storage only: {wrong} {sys.argv}")
        etcd = Path(os.environ["ETCD_CONFIG_PATH"]).read_text()
        if "listen-client-urls: http://127.0.0.1:2379" not in etcd:
            sys.exit("etcd would listen to others")
        Path(os.environ["ETCD_DATA_DIR"]).mkdir(exist_ok=True)
        Server.data = Data("/var/lib/milvus")
        serve(Health, 9091)
        serve(Milvus, 19530)
    elif KIND == "qdrant":
        Path(os.environ.get("QDRANT_INIT_FILE_PATH", ".qdrant-initialized")).touch()
        Path(os.environ["QDRANT__STORAGE__SNAPSHOTS_PATH"], "double").touch()
        Server.data = Data(os.environ.get("QDRANT__STORAGE__STORAGE_PATH", "./storage"))
        serve(Qdrant, 6333)
    elif KIND == "searxng":
        if not os.environ.get("SEARXNG_SECRET"):
            sys.exit("server.secret_key is not changed")
        Searxng.settings = Path("/etc/searxng/settings.yml").read_text()
        if "limiter: true" in Searxng.settings:
            with socket.create_connection(("valkey", 6379), timeout=5) as valkey:
                valkey.sendall(b"PING\r\n")
                if valkey.recv(16) != b"+PONG\r\n":
                    sys.exit("no Valkey for the limiter")
        serve(Searxng, 8080)


if __name__ == "__main__":
    main()
