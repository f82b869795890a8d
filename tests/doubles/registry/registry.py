"""A double of the registry Ollama pulls from: manifests and blobs of a folder over HTTP, with faults on demand.

    python registry.py FOLDER ADDRESS PORT     serve until the process is ended; prints "ready PORT" once it listens

``POST /_fault`` with a JSON object sets what goes wrong from then on, ``{}`` that nothing does; ``GET /_served`` gives
the bytes of blobs sent since the start. See the README. Python's standard library only.
"""

import hashlib
import json
import re
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

PATH = re.compile(r"/v2/(?P<model>[^/]+/[^/]+)/(?P<kind>manifests|blobs)/(?P<what>[^/]+)")
MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
LAYER = "application/vnd.ollama.image."
CHUNK = 16384
ANSWERS = {
    401: ("UNAUTHORIZED", "authentication required"),
    404: ("MANIFEST_UNKNOWN", "manifest unknown"),
    429: ("TOOMANYREQUESTS", "rate exceeded"),
}


def publish(folder, name, weights, parameters=None):
    """Add a model to a registry's folder; return the digest of its manifest, without its algorithm.

    Args:
        folder: of the registry.
        name: ``namespace/model:tag``.
        weights: content of its GGUF file.
        parameters: of the model.
    """
    blobs = folder / "blobs"
    blobs.mkdir(parents=True, exist_ok=True)

    def blob(data, media):
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        (blobs / digest).write_bytes(data)
        return {"mediaType": media, "digest": digest, "size": len(data)}

    layers = [blob(weights, LAYER + "model"), blob(b"{{ .System }} {{ .Prompt }}", LAYER + "template")]
    if parameters:
        layers.append(blob(json.dumps(parameters).encode(), LAYER + "params"))
    config = {
        "model_format": "gguf",
        "model_family": "llama",
        "model_families": ["llama"],
        "model_type": "0.1M",
        "file_type": "F32",
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [layer["digest"] for layer in layers]},
    }
    media = "application/vnd.docker.container.image.v1+json"
    document = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": blob(json.dumps(config).encode(), media),
        "layers": layers,
    }
    raw = json.dumps(document).encode()
    path, _, tag = name.rpartition(":")
    target = folder / "manifests" / path / tag
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(raw)
    return hashlib.sha256(raw).hexdigest()


class Registry(BaseHTTPRequestHandler):
    """Serves a folder; faults and count are shared by all connections."""

    protocol_version = "HTTP/1.1"
    folder = Path()
    fault = {}  # noqa: RUF012 - replaced, never changed
    served = 0

    def do_GET(self):
        """Send a manifest, or a blob from where it is asked for on."""
        if self.path == "/_served":
            self.send(200, json.dumps(type(self).served).encode())
            return
        match = PATH.fullmatch(self.path)
        if not match:
            self.refuse(404)
            return
        kind = match["kind"]
        if (status := self.fault.get(f"{kind}_status")) is not None:
            self.refuse(status)
            return
        below = Path("blobs") if kind == "blobs" else Path("manifests") / match["model"]
        path = self.folder / below / match["what"]
        if not path.is_file():
            self.refuse(404)
        elif kind == "manifests":
            self.send(200, path.read_bytes(), {"Content-Type": MANIFEST})
        else:
            self.send_blob(path)

    do_HEAD = do_GET  # noqa: N815 - name fixed by http.server

    def do_POST(self):
        """Take a fault."""
        type(self).fault = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.send(200, b"{}")

    def send_blob(self, path):
        """Send a blob as slowly, as wrongly and as far as told."""
        data = path.read_bytes()
        if self.fault.get("corrupt") and len(data) > 4096:
            data = data[:-1] + bytes([data[-1] ^ 1])
        start, stop, status = 0, len(data), 200
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, stop = int(match[1]), int(match[2]) + 1 if match[2] else len(data)
            status = 206
        part = data[start:stop]
        self.send_response(status)
        self.send_header("Content-Length", str(len(part)))
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
        self.end_headers()
        if self.command == "HEAD":
            return
        limit = self.fault.get("cut_after") if len(data) > 4096 else None
        rate = self.fault.get("bytes_per_second") if len(data) > 4096 else None
        sent = 0
        while sent < len(part) and (limit is None or sent < limit):
            piece = part[sent : sent + CHUNK] if limit is None else part[sent : min(sent + CHUNK, limit)]
            self.wfile.write(piece)
            sent += len(piece)
            type(self).served += len(piece)
            if rate:
                time.sleep(len(piece) / rate)
        if sent < len(part):
            self.close_connection = True

    def refuse(self, status):
        """Send an error as a registry writes it."""
        code, message = ANSWERS.get(status, ("UNKNOWN", "unknown error"))
        headers = {"Retry-After": "60"} if status == 429 else {}
        body = json.dumps({"errors": [{"code": code, "message": message}]}).encode()
        self.send(status, body, {"Content-Type": "application/json", **headers})

    def send(self, status, body, headers=None):
        """Send a whole answer."""
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *arguments):
        """Say nothing."""


def main(folder, address, port):
    """Serve."""
    Registry.folder = Path(folder)
    server = ThreadingHTTPServer((address, int(port)), Registry)
    print(f"ready {server.server_port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
