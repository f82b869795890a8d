#!/usr/bin/python3
"""A double of Ollama for test hosts: the HTTP API and three commands, without any model.

It speaks the wire format of Ollama's API so that a deployment can be tested where no image can be pulled and no model
fits. It does no inference: every answer says that it comes from the double. Python's standard library only.
"""

import json
import os
import signal
import sys
import time
import urllib.request
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

VERSION = os.environ.get("OLLAMA_DOUBLE_VERSION", "0.0.0")
MODEL = "gpurack-double:latest"
# Told by whoever starts it, to be in a state that a real server without a GPU does not get into; see the README.
LOG = os.environ.get("OLLAMA_DOUBLE_LOG", "")
MODELS = os.environ.get("OLLAMA_DOUBLE_MODELS", "")
LOADED = os.environ.get("OLLAMA_DOUBLE_PS", "")
DETAILS = {
    "parent_model": "",
    "format": "none",
    "family": "double",
    "families": ["double"],
    "parameter_size": "0",
    "quantization_level": "none",
}
LISTED = {
    "name": MODEL,
    "model": MODEL,
    "modified_at": "2025-01-01T00:00:00Z",
    "size": 0,
    "digest": "0" * 64,
    "details": DETAILS,
}


def address():
    """Return (host, port) from OLLAMA_HOST, read the way Ollama reads it."""
    text = os.environ.get("OLLAMA_HOST", "").strip().strip("\"'").rstrip("/")
    scheme, found, rest = text.partition("://")
    if not found:
        scheme, rest = "", text
    host, colon, port = rest.rpartition(":")
    if not colon or host.count("[") != host.count("]"):
        host, port = rest, ""
    default = {"http": 80, "https": 443}.get(scheme, 11434)
    return host.strip("[]") or "127.0.0.1", int(port) if port.isdigit() else default


def now():
    """Return the time as Ollama writes it."""
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


def words_for(question):
    """Return the answer's tokens; the answer names its origin."""
    return f"This is the gpurack test double of Ollama, no model was run. You asked: {question}".split(" ")


def closing(prompt, words, started):
    """Return the figures of a finished answer (durations in nanoseconds)."""
    total = time.monotonic_ns() - started
    return {
        "done": True,
        "done_reason": "stop",
        "total_duration": total,
        "load_duration": 0,
        "prompt_eval_count": len(prompt.split()),
        "prompt_eval_duration": 0,
        "eval_count": len(words),
        "eval_duration": total,
    }


class Handler(BaseHTTPRequestHandler):
    """The part of the API the double answers; anything else is 404, as in Ollama."""

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

    def stream(self, parts):
        """Send newline-delimited JSON in chunks, one object a token."""
        self.send_response(200)
        self.send_header("Content-Type", "application/x-ndjson")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for part in parts:
            line = json.dumps(part).encode() + b"\n"
            self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
            self.wfile.flush()
        self.wfile.write(b"0\r\n\r\n")

    def do_GET(self):
        """Answer the read-only endpoints."""
        answers = {
            "/": "Ollama is running",
            "/api/version": {"version": VERSION},
            "/api/tags": {"models": json.loads(MODELS) if MODELS else [LISTED]},
            "/api/ps": {"models": json.loads(LOADED) if LOADED else []},
        }
        if self.path in answers:
            self.reply(answers[self.path])
        else:
            self.reply("404 page not found", 404)

    do_HEAD = do_GET  # noqa: N815 - name fixed by http.server

    def do_POST(self):
        """Answer /api/show, /api/generate and /api/chat."""
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            request = json.loads(raw)
            if not isinstance(request, dict):
                raise ValueError("expected an object")
        except ValueError as error:
            self.reply({"error": str(error)}, 400)
            return
        if self.path not in ("/api/show", "/api/generate", "/api/chat"):
            self.reply("404 page not found", 404)
            return
        model = str(request.get("model") or request.get("name") or "")
        if model not in (MODEL, MODEL.removesuffix(":latest")):
            self.reply({"error": f"model '{model}' not found"}, 404)
        elif self.path == "/api/show":
            self.reply({"modelfile": "", "template": "", "details": DETAILS, "capabilities": ["completion"]})
        else:
            self.answer(model, request)

    def answer(self, model, request):
        """Answer a question, streamed unless the request says otherwise."""
        chat = self.path == "/api/chat"
        messages = request.get("messages") or [{}]
        prompt = str(messages[-1].get("content", "")) if chat else str(request.get("prompt", ""))
        words, started = words_for(prompt), time.monotonic_ns()

        def part(text, **more):
            body = {"message": {"role": "assistant", "content": text}} if chat else {"response": text}
            return {"model": model, "created_at": now(), **body, "done": False, **more}

        if request.get("stream", True):
            tokens = [words[0], *(f" {word}" for word in words[1:])]
            self.stream([*map(part, tokens), part("", **closing(prompt, words, started))])
        else:
            self.reply(part(" ".join(words), **closing(prompt, words, started)))


def main(arguments):
    """Run `ollama serve`, `ollama list`, `ollama ps` or `ollama --version`; return the exit status."""
    host, port = address()
    if arguments == ["serve"]:
        # Process 1 of a container has no default handler: without this every stop would wait until it is killed.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        server = ThreadingHTTPServer((host, port), Handler)
        print(f"gpurack test double of Ollama {VERSION}, no inference, listening on {host}:{port}", flush=True)
        if LOG:
            print(LOG, flush=True)
        server.serve_forever()
        return 0
    if arguments in (["--version"], ["-v"]):
        print(f"ollama version is {VERSION} (gpurack test double)")
        return 0
    if arguments in (["list"], ["ls"], ["ps"]):
        target = "127.0.0.1" if host in ("0.0.0.0", "::") else host  # noqa: S104 - compared, not bound
        path = "/api/ps" if arguments == ["ps"] else "/api/tags"
        try:
            with urllib.request.urlopen(f"http://{target}:{port}{path}", timeout=5) as answer:
                models = json.load(answer)["models"]
        except OSError as error:
            print(f"Error: could not connect to ollama server: {error}", file=sys.stderr)
            return 1
        print("NAME    ID    SIZE    MODIFIED")
        for model in models:
            print(f"{model['name']}    {model['digest'][:12]}    {model['size']}    {model['modified_at']}")
        return 0
    print(f"Error: the test double knows serve, list, ps and --version, not {arguments}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
