"""A double of a container registry; see README.md."""

from __future__ import annotations

import base64
import json
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

FOLDER = Path(sys.argv[1])


class Registry(BaseHTTPRequestHandler):
    """config.json: auth (none, basic, bearer), user, password, status, retry_after, manifests, digest_header."""

    def log_message(self, *arguments: Any) -> None:
        """Say nothing on the terminal; requests.log has each request and the kind of its login."""

    def do_GET(self) -> None:
        self.answer(body=True)

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def answer(self, *, body: bool) -> None:
        config = json.loads((FOLDER / "config.json").read_text())
        url, login = urlsplit(self.path), self.headers.get("Authorization", "")
        with (FOLDER / "requests.log").open("a") as log:
            log.write(f"{self.command} {url.path} {login.partition(' ')[0]}\n")
        pair = f"{config.get('user')}:{config.get('password')}".encode()
        basic = f"Basic {base64.b64encode(pair).decode()}"
        if url.path == "/token":
            scope = parse_qs(url.query).get("scope", [""])[0]
            if config.get("user") and login != basic:
                return self.send(401, b"")
            return self.send(200, json.dumps({"token": f"token for {scope}"}).encode())
        if "status" in config:
            headers = {"Retry-After": config["retry_after"]} if "retry_after" in config else {}
            return self.send(config["status"], b"", headers)
        name, _, tag = url.path.removeprefix("/v2/").partition("/manifests/")
        auth, scope = config.get("auth", "none"), f"repository:{name}:pull"
        if auth == "basic" and login != basic:
            return self.send(401, b"", {"WWW-Authenticate": 'Basic realm="registry"'})
        if auth == "bearer" and login != f"Bearer token for {scope}":
            realm = config.get("realm", f"http://{self.headers['Host']}/token")
            return self.send(401, b"", {"WWW-Authenticate": f'Bearer realm="{realm}",service="double",scope="{scope}"'})
        manifest = config.get("manifests", {}).get(f"{name}:{tag}")
        if manifest is None:
            return self.send(404, b"")
        headers = {"Docker-Content-Digest": config["digest_header"]} if "digest_header" in config else {}
        return self.send(200, manifest.encode() if body else b"", headers)

    def send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


server = HTTPServer(("127.0.0.1", 0), Registry)
(FOLDER / "port.new").write_text(str(server.server_port))
(FOLDER / "port.new").rename(FOLDER / "port")
server.serve_forever()
