#!/usr/bin/python3
"""A double of Ollama for test hosts: the HTTP API and three commands, without any model or with llama.cpp's server.

It speaks the wire format of Ollama's API so that a deployment can be tested where no image can be pulled. Without
OLLAMA_DOUBLE_ENGINE in its environment it does no inference, and every answer says that it comes from the double; with
it, models are pulled, made and run for real. Python's standard library only.
"""

import json
import os
import signal
import sys
import time
import urllib.request
from http.server import ThreadingHTTPServer

from wire import VERSION, Handler, now

ENGINE = bool(os.environ.get("OLLAMA_DOUBLE_ENGINE"))
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


class ScriptedHandler(Handler):
    """Answers without a model, for one name."""

    def do_GET(self):
        """Answer the read-only endpoints."""
        if self.path == "/api/tags":
            self.reply({"models": json.loads(MODELS) if MODELS else [LISTED]})
        elif self.path == "/api/ps":
            self.reply({"models": json.loads(LOADED) if LOADED else []})
        else:
            self.plain_get()

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
        handler, kind = ScriptedHandler, "no inference"
        if ENGINE:
            import models

            models.prepare()
            handler, kind = models.ModelHandler, "llama.cpp"
        server = ThreadingHTTPServer((host, port), handler)
        print(f"gpurack test double of Ollama {VERSION}, {kind}, listening on {host}:{port}", flush=True)
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
