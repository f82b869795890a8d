"""Running models with llama.cpp's server: loaded on demand, kept as long as asked, as Ollama's scheduler does it."""

import json
import os
import re
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from datetime import UTC, datetime, timedelta

import store

SERVER = "/usr/bin/llama-server"
START_SECONDS = 60
FOREVER = 100 * 365 * 86400
UNITS = {"h": 3600, "m": 60, "s": 1, "ms": 0.001}
OPTIONS = {"num_predict": "n_predict", "num_keep": "n_keep"}
"""Names of Ollama's options that llama.cpp calls otherwise."""

_runners = {}
_lock = threading.Lock()


class EngineError(Exception):
    """A model cannot be run; the message is Ollama's."""


def seconds(value):
    """Return a keep_alive in seconds: a number, or a duration such as ``5m``; below 0 is for ever."""
    if value is None:
        value = os.environ.get("OLLAMA_KEEP_ALIVE", "5m")
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            found = re.findall(r"([0-9.]+)(ms|h|m|s)", value)
            value = sum(float(number) * UNITS[unit] for number, unit in found)
    return FOREVER if value < 0 else value


class Runner:
    """One model in memory."""

    def __init__(self, name, options):
        found, self.digest = store.manifest(name)
        self.name, self.details = store.shortest(name), store.details(found)
        default = os.environ.get("OLLAMA_CONTEXT_LENGTH") or 4096
        self.context = int(options.get("num_ctx") or default)
        self.path = store.weights(found)
        self.used = 0
        self.expires = time.time() + FOREVER
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        command = [SERVER, "--model", str(self.path), "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--ctx-size", str(self.context), "--threads", "1", "--parallel", "1", "--embeddings"]
        command += ["--pooling", "mean", "--log-disable"]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._wait()

    def _wait(self):
        limit = time.monotonic() + START_SECONDS
        while time.monotonic() < limit:
            if (status := self.process.poll()) is not None:
                raise EngineError(f"llama runner process has terminated: exit status {status}")
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5):
                    return
            except OSError:
                time.sleep(0.02)
        self.process.kill()
        raise EngineError("timed out waiting for llama runner to start")

    def ask(self, path, body):
        """Return the open answer to a request."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            return urllib.request.urlopen(request, timeout=600)
        except urllib.error.HTTPError as error:
            raise EngineError(error.read().decode(errors="replace")) from None

    def stream(self, path, body):
        """Yield the events of a streamed answer."""
        with self.ask(path, {**body, "stream": True}) as answer:
            for line in answer:
                if line.startswith(b"data: {"):
                    yield json.loads(line.removeprefix(b"data: "))

    @property
    def listed(self):
        """Its entry in /api/ps."""
        expires = datetime.now(UTC) + timedelta(seconds=self.expires - time.time())
        return {
            "name": self.name,
            "model": self.name,
            "size": self.path.stat().st_size,
            "digest": self.digest,
            "details": self.details,
            "expires_at": expires.isoformat(),
            "size_vram": 0,
            "context_length": self.context,
        }

    def stop(self):
        """Take it out of memory."""
        self.process.terminate()
        self.process.wait()


def running():
    """Return the models in memory, without those whose time is over."""
    with _lock:
        for name, runner in list(_runners.items()):
            if runner.process.poll() is not None or (not runner.used and runner.expires < time.time()):
                runner.stop()
                del _runners[name]
        return list(_runners.values())


def watch():
    """Unload models when their time is over, for ever."""
    while True:
        running()
        time.sleep(0.5)


class Use:
    """A model in memory while a request needs it; its time runs from the end of the request."""

    def __init__(self, name, options, keep_alive):
        self.name, self.options, self.keep = name, options, seconds(keep_alive)

    def __enter__(self):
        _, digest = store.manifest(self.name)
        running()
        with _lock:
            runner = _runners.get(self.name)
            wanted = self.options.get("num_ctx")
            if runner and (runner.digest != digest or (wanted and runner.context != wanted)):
                runner.stop()
                runner = None
            if runner is None:
                runner = _runners[self.name] = Runner(self.name, self.options)
            runner.used += 1
            self.runner = runner
        return runner

    def __exit__(self, *_):
        with _lock:
            self.runner.used -= 1
            self.runner.expires = time.time() + self.keep


def sampling(options):
    """Return Ollama's options as llama.cpp takes them."""
    return {OPTIONS.get(key, key): value for key, value in options.items() if not key.startswith(("num_ctx", "num_g"))}
