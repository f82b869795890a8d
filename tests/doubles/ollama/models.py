"""The part of Ollama's API that needs models: lists, pulls, making, answers. See the README."""

import json
import os
import tempfile
import threading
import time
from pathlib import Path

import create
import download
import engine
import store
from wire import Handler, now

RUNNING = (create.CreateError, download.PullError, engine.EngineError, OSError, ValueError)


class ModelHandler(Handler):
    """Ollama's API over real models."""

    def do_GET(self):
        """Answer the read-only endpoints."""
        if self.path == "/api/tags":
            self.reply({"models": [store.listed(name) for name in store.names()]})
        elif self.path == "/api/ps":
            self.reply({"models": [runner.listed for runner in engine.running()]})
        elif self.path == "/v1/models":
            entries = [{"id": store.shortest(name), "object": "model", "owned_by": "library"} for name in store.names()]
            self.reply({"object": "list", "data": entries})
        elif self.path.startswith("/api/blobs/"):
            self.blob_there()
        else:
            self.plain_get()

    do_HEAD = do_GET  # noqa: N815 - name fixed by http.server

    def blob_there(self):
        """Answer whether a blob is there."""
        try:
            found = store.blob(self.path.removeprefix("/api/blobs/")).exists()
        except ValueError as error:
            self.reply({"error": str(error)}, 400)
            return
        self.reply("", 200 if found else 404)

    def do_POST(self):
        """Answer everything that names a model."""
        if self.path.startswith("/api/blobs/"):
            self.take_blob()
            return
        answer = {
            "/api/show": self.show,
            "/api/pull": self.pull,
            "/api/create": self.create,
            "/api/copy": self.copy,
            "/api/generate": self.generate,
            "/api/chat": self.chat,
            "/api/embed": self.embed,
            "/v1/chat/completions": self.pass_on,
        }.get(self.path)
        self.carry_out(answer)

    def do_DELETE(self):
        """Remove a model."""
        self.carry_out(self.delete if self.path == "/api/delete" else None)

    def carry_out(self, answer):
        """Read the request and answer it; what is wrong is told as Ollama tells it."""
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if answer is None:
            self.reply("404 page not found", 404)
            return
        try:
            request = json.loads(raw)
            answer(request)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        except store.NotFoundError as error:
            self.reply({"error": f"model '{error}' not found"}, 404)
        except ValueError as error:
            self.reply({"error": str(error)}, 400)
        except engine.EngineError as error:
            self.reply({"error": str(error)}, 500)

    def named(self, request):
        """Return the model of a request."""
        return store.parse(str(request.get("model") or request.get("name") or ""))

    def progress(self, request, work):
        """Stream the steps of a work, or answer at its end; an error comes as the last line, after status 200."""
        if request.get("stream") is False:
            try:
                work(lambda _: None)
            except RUNNING as error:
                self.reply({"error": str(error)}, 500)
            else:
                self.reply({"status": "success"})
            return
        self.begin_stream()
        try:
            work(self.send_part)
        except (BrokenPipeError, ConnectionResetError):
            raise
        except RUNNING as error:
            self.send_part({"error": str(error)})
        self.end_stream()

    def show(self, request):
        """Say what a model is."""
        self.reply(store.shown(self.named(request)))

    def pull(self, request):
        """Pull a model from its registry."""
        name = self.named(request)
        self.progress(request, lambda emit: download.pull(name, bool(request.get("insecure")), emit))

    def create(self, request):
        """Make a model from another, or from blobs."""
        self.progress(request, lambda emit: create.create(request, emit))

    def copy(self, request):
        """Give a model a second name."""
        source, target = store.parse(request["source"]), store.parse(request["destination"])
        store.manifest(source)
        store.save(target, store.path_of(source).read_bytes())
        self.reply("")

    def delete(self, request):
        """Remove a model."""
        store.delete(self.named(request))
        self.reply("")

    def take_blob(self):
        """Store the body as a blob if it has the digest it is sent under."""
        digest, left = self.path.removeprefix("/api/blobs/"), int(self.headers.get("Content-Length") or 0)
        target = store.blob(digest)
        with tempfile.NamedTemporaryFile(dir=target.parent, delete=False) as file:
            while left and (data := self.rfile.read(min(left, 1 << 20))):
                file.write(data)
                left -= len(data)
        path = Path(file.name)
        if (actual := store.sha256(path)) != digest:
            path.unlink()
            self.reply({"error": f'digest mismatch, expected "{digest}", got "{actual}"'}, 400)
            return
        path.replace(target)
        self.reply("", 201)

    def using(self, name, request):
        """Return the model in memory for a request, with its options."""
        options = {**store.parameters(store.manifest(name)[0]), **(request.get("options") or {})}
        return engine.Use(name, options, request.get("keep_alive")), options

    def generate(self, request):
        """Continue a prompt; without one, load the model or let it go."""
        name = self.named(request)
        use, options = self.using(name, request)
        if not request.get("prompt"):
            with use:
                pass
            reason = "load" if use.keep > 0 else "unload"
            engine.running()
            document = {"model": request["model"], "created_at": now(), "response": "", "done": True}
            self.reply({**document, "done_reason": reason})
            return
        system = request.get("system") or store.text(store.manifest(name)[0], "system")
        prompt = "\n\n".join(filter(None, (system, request["prompt"])))
        started = time.monotonic_ns()
        with use as runner:
            loaded = time.monotonic_ns() - started
            events = runner.stream("/completion", {"prompt": prompt, **engine.sampling(options)})
            self.answer(request, ((event.get("content", ""), event) for event in events), started, loaded)

    def chat(self, request):
        """Answer a conversation."""
        name = self.named(request)
        use, options = self.using(name, request)
        messages = request.get("messages") or []
        if not messages:
            self.generate(request)
            return
        system = store.text(store.manifest(name)[0], "system")
        if system and messages[0].get("role") != "system":
            messages = [{"role": "system", "content": system}, *messages]
        started = time.monotonic_ns()
        with use as runner:
            loaded = time.monotonic_ns() - started
            events = runner.stream("/v1/chat/completions", {"messages": messages, **engine.sampling(options)})
            tokens = (
                ((event.get("choices") or [{}])[0].get("delta", {}).get("content") or "", event) for event in events
            )
            self.answer(request, tokens, started, loaded)

    def answer(self, request, tokens, started, loaded):
        """Send the tokens, streamed unless the request says otherwise, and the engine's own figures."""
        chat = self.path == "/api/chat"

        def part(text, **more):
            body = {"message": {"role": "assistant", "content": text}} if chat else {"response": text}
            return {"model": request["model"], "created_at": now(), **body, "done": False, **more}

        streamed, whole, timings = request.get("stream", True), "", {}
        if streamed:
            self.begin_stream()
        for text, event in tokens:
            timings = event.get("timings") or timings
            whole += text
            if streamed and text:
                self.send_part(part(text))
        closing = {
            "done": True,
            "done_reason": "stop",
            "total_duration": time.monotonic_ns() - started,
            "load_duration": loaded,
            "prompt_eval_count": timings.get("prompt_n", 0),
            "prompt_eval_duration": int(timings.get("prompt_ms", 0) * 1e6),
            "eval_count": timings.get("predicted_n", 0),
            "eval_duration": int(timings.get("predicted_ms", 0) * 1e6),
        }
        if streamed:
            self.send_part(part("", **closing))
            self.end_stream()
        else:
            self.reply(part(whole, **closing))

    def embed(self, request):
        """Return the embeddings of one text or several."""
        use, _ = self.using(self.named(request), request)
        started = time.monotonic_ns()
        with use as runner:
            loaded = time.monotonic_ns() - started
            with runner.ask("/v1/embeddings", {"input": request.get("input", "")}) as answer:
                found = json.load(answer)
        self.reply(
            {
                "model": request["model"],
                "embeddings": [entry["embedding"] for entry in found["data"]],
                "total_duration": time.monotonic_ns() - started,
                "load_duration": loaded,
                "prompt_eval_count": found["usage"]["prompt_tokens"],
            }
        )

    def pass_on(self, request):
        """Hand a request of OpenAI's API to the engine, and its answer back as it comes."""
        use, options = self.using(self.named(request), request)
        with use as runner, runner.ask(self.path, {**engine.sampling(options), **request}) as answer:
            self.begin_stream(answer.headers["Content-Type"])
            while data := answer.read1(65536):
                self.send_raw(data)
            self.end_stream()


def prepare():
    """Start what runs beside the answers."""
    os.umask(0o022)
    store.BLOBS.mkdir(parents=True, exist_ok=True)
    store.MANIFESTS.mkdir(parents=True, exist_ok=True)
    threading.Thread(target=engine.watch, daemon=True).start()
