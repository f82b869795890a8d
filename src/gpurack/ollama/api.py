"""Ollama's API as curl on the host reaches it, and what its errors mean."""

from __future__ import annotations

import json
import re
import shlex
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from gpurack.ollama.names import ModelName

CURL = "curl --silent --show-error --noproxy '*'"
LOST = {7: "does not answer", 18: "broke off", 52: "broke off", 56: "broke off"}
"""curl's exit statuses when the server is down or goes down."""

RESTART_SECONDS = 120
"""How long a server may take to come back."""

TRIES_WITHOUT_PROGRESS = 3


class OllamaError(Exception):
    """Ollama refused, or could not do, what was asked; the message is its own."""


class LostError(OllamaError):
    """Ollama did not answer, or stopped in the middle of an answer."""


class Process(Protocol):
    """A command at work."""

    def lines(self) -> Iterator[str]:
        """Yield its output, line by line as it comes."""

    def finish(self) -> tuple[int, str]:
        """Wait for its end; return its exit status and what it wrote to standard error."""


class Shell(Protocol):
    """Something that runs shell scripts as root on a host."""

    def start(self, script: str) -> Process:
        """Start a script."""


def run(shell: Shell, script: str) -> str:
    """Run a script and return its output.

    Raises:
        OllamaError: it failed; the message is what it wrote to standard error.
    """
    process = shell.start(script)
    output = "".join(process.lines())
    status, errors = process.finish()
    if status:
        raise OllamaError(errors.strip() or f"exit status {status}")
    return output


@dataclass(frozen=True)
class Api:
    """The API at an address of the host, ``127.0.0.1:11434``."""

    shell: Shell
    address: str

    def request(self, method: str, path: str, body: Any = None) -> Iterator[dict[str, Any]]:
        """Yield the documents of an answer as they come.

        Raises:
            LostError: no answer, or half of one.
            OllamaError: an error status, or an error in the answer.
        """
        process = self.shell.start(command(method, f"http://{self.address}{path}", body))
        status = ""
        for line in process.lines():
            if line.startswith("= "):
                status = line[2:].strip()
            elif line.strip():
                try:
                    document = json.loads(line)
                except ValueError:
                    raise OllamaError(f"{path}: not JSON: {line.strip()[:200]}") from None
                if isinstance(document, dict) and document.get("error"):
                    raise OllamaError(str(document["error"]))
                yield document
        code, errors = process.finish()
        if code in LOST:
            raise LostError(f"Ollama at {self.address} {LOST[code]} ({errors.strip()})")
        if code:
            raise OllamaError(errors.strip() or f"curl: exit status {code}")
        if not status.startswith("2"):
            raise OllamaError(f"{path}: HTTP status {status}")

    def call(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        """Return the last document of an answer; empty where there is none."""
        last: dict[str, Any] = {}
        for document in self.request(method, path, body):
            last = document
        return last

    def digests(self) -> dict[str, str]:
        """Return the digest of each model by its name's key."""
        models = self.call("GET", "/api/tags").get("models") or []
        return {ModelName.parse(model["name"]).key: model["digest"] for model in models}

    def copy(self, source: ModelName, target: ModelName) -> None:
        """Give a model a second name."""
        self.call("POST", "/api/copy", {"source": str(source), "destination": str(target)})

    def delete(self, name: ModelName) -> None:
        """Take a name away, and the model if it was its last; out of memory first, which Ollama does not do itself."""
        loaded = self.call("GET", "/api/ps").get("models") or []
        if name.key in {ModelName.parse(model["name"]).key for model in loaded}:
            self.call("POST", "/api/generate", {"model": str(name), "keep_alive": 0})
        self.call("DELETE", "/api/delete", {"model": str(name)})

    def wait(self) -> None:
        """Wait until the server answers again.

        Raises:
            LostError: it does not.
        """
        deadline = time.monotonic() + RESTART_SECONDS
        while True:
            try:
                self.call("GET", "/api/version")
            except LostError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)
            else:
                return


def command(method: str, url: str, body: Any = None) -> str:
    """Return the curl command of a request; the status comes behind the answer, on a line that no JSON begins as."""
    data = "" if body is None else f" --data-binary {shlex.quote(json.dumps(body))}"
    return f"{CURL} --no-buffer --request {method} --write-out '\\n= %{{http_code}}\\n'{data} {shlex.quote(url)}"


Report = Callable[[int, int], None]
"""Takes bytes that are there and bytes in all."""


def pull(api: Api, name: ModelName, *, insecure: bool, report: Report) -> None:
    """Pull a model; what cuts the way off is tried again as long as that brings more of it.

    Ollama itself tries six times in a bit more than a minute, and keeps what it has for the next time.

    Raises:
        OllamaError: it could not be pulled.
    """
    best, tries, again = -1, 0, True
    while True:
        seen: dict[str, tuple[int, int]] = {}
        try:
            for step in api.request("POST", "/api/pull", {"model": str(name), "insecure": insecure, "stream": True}):
                if "total" in step:
                    seen[step["digest"]] = (step.get("completed", 0), step["total"])
                    report(sum(have for have, _ in seen.values()), sum(total for _, total in seen.values()))
                if step.get("status") == "success":
                    return
            raise LostError("Ollama ended its answer before the model was there")
        except OllamaError as error:
            have = sum(count for count, _ in seen.values())
            tries = 0 if have > best else tries + 1
            best = max(best, have)
            if isinstance(error, LostError):
                api.wait()
            elif "digest mismatch" in str(error) and again:
                again = False  # Ollama has thrown the blob away: once more from the beginning
            elif "max retries exceeded" not in str(error):
                raise
            if tries >= TRIES_WITHOUT_PROGRESS:
                raise


MEANINGS = (
    (
        r"file does not exist|manifest unknown|\b404\b",
        "the registry has no such model: compare name and tag with its list (https://ollama.com/library)",
    ),
    (
        r"unauthorized|\b401\b|\b403\b",
        "the registry wants a login: give it the server's public key, id_ed25519.pub in ollama.models_dir, "
        "or pull from a registry that lets this host in",
    ),
    (r"\b429\b|TOOMANYREQUESTS", "the registry lets nobody pull that often: run again later, or pull from a mirror"),
    (
        r"no space left",
        "the disk is full; what has come is kept: make room under ollama.models_dir and run again",
    ),
    (
        r"digest mismatch",
        "what came twice is not what the registry's manifest says: a broken mirror or proxy on the way",
    ),
    (
        r"max retries exceeded|unexpected EOF|connection reset|timeout",
        "the way to the registry is cut; what has come is kept: run again, and it goes on from there",
    ),
    (
        r"no such host|lookup |connection refused|network is unreachable|no route to host|Errno",
        "the server cannot reach the registry: look at its name, DNS, proxy and firewall",
    ),
    (
        r"server gave HTTP response to HTTPS|insecure protocol",
        "the registry speaks plain HTTP: list it in ollama_models.insecure_registries",
    ),
)


def meaning(error: str) -> str:
    """Return an error of Ollama's with what it means and what to do."""
    text = " ".join(error.split())[:300]
    for pattern, cure in MEANINGS:
        if re.search(pattern, text, re.IGNORECASE):
            return f"{text}: {cure}"
    return text
