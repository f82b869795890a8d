"""What every part of the Ollama double speaks: HTTP with JSON documents and streams of them, as Ollama sends them."""

import json
import os
import time
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler

VERSION = os.environ.get("OLLAMA_DOUBLE_VERSION", "0.0.0")
SLOW = float(os.environ.get("OLLAMA_DOUBLE_SLOW", "0"))
"""Seconds from a question to the first token, beside what it takes: a server that got slower."""


def now():
    """Return the time as Ollama writes it."""
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


class Handler(BaseHTTPRequestHandler):
    """The part of the API that needs no model; anything else is 404, as in Ollama."""

    protocol_version = "HTTP/1.1"
    server_version = "gpurack-ollama-double"

    def reply(self, body, status=200):
        """Send one JSON document, or plain text."""
        plain = isinstance(body, str)
        data = body.encode() if plain else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain; charset=utf-8" if plain else "application/json; charset=utf-8")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def begin_stream(self, kind="application/x-ndjson"):
        """Begin an answer whose end is not known."""
        time.sleep(SLOW)
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def send_raw(self, data):
        """Send a piece of it."""
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def send_part(self, document):
        """Send a line of it."""
        self.send_raw(json.dumps(document).encode() + b"\n")

    def end_stream(self):
        """End it."""
        self.wfile.write(b"0\r\n\r\n")

    def stream(self, parts):
        """Send newline-delimited JSON in chunks, one object a token."""
        self.begin_stream()
        for part in parts:
            self.send_part(part)
        self.end_stream()

    def plain_get(self):
        """Answer what needs no model."""
        if self.path == "/":
            self.reply("Ollama is running")
        elif self.path == "/api/version":
            self.reply({"version": VERSION})
        else:
            self.reply("404 page not found", 404)
