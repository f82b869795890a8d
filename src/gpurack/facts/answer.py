"""Facts that ask a model through Ollama's API on the host, as its users' programs do.

Paths and fields as in Ollama's docs/api.md: a request without a prompt loads the model; the last object of a stream
counts ``eval_count`` tokens in ``eval_duration`` nanoseconds; ``capabilities`` of /api/show tells embedding models.
"""

from __future__ import annotations

import json
import shlex
from typing import Any

from pyinfra.api import FactBase

from gpurack.rollout.acceptance import Answer

MARK = "gpurack-status"
"""Begins the line that curl adds: status of HTTP, seconds to the first byte, seconds in all."""


def _curl(url: str, body: dict[str, Any], seconds: int) -> str:
    figures = f"\\n{MARK} %{{http_code}} %{{time_starttransfer}} %{{time_total}}\\n"
    return (
        f"curl --silent --show-error --no-buffer --max-time {seconds} --data {shlex.quote(json.dumps(body))} "
        f"--write-out '{figures}' {shlex.quote(url)} 2>&1; true"
    )


def _parts(output: list[str]) -> tuple[list[dict[str, Any]], list[str], int, float, float]:
    """Return the JSON objects of an answer, what else was printed, the status, and the two times in seconds."""
    objects: list[dict[str, Any]] = []
    others: list[str] = []
    status, first, total = 0, 0.0, 0.0
    for line in output:
        words = line.split()
        if words[:1] == [MARK] and len(words) == 4:
            status, first, total = int(words[1]), float(words[2]), float(words[3])
            continue
        try:
            found = json.loads(line)
        except ValueError:
            found = None
        if isinstance(found, dict):
            objects.append(found)
        elif line.strip():
            others.append(line.strip())
    return objects, others, status, first, total


def _error(objects: list[dict[str, Any]], others: list[str], status: int) -> str:
    """Return why an answer is none; empty when it is one."""
    told = next((str(item["error"]) for item in objects if item.get("error")), "")
    if told or status != 200:
        cause = told or next(iter(others), "") or "the server said nothing"
        return f"HTTP {status}: {cause}" if status else f"no answer: {cause}"
    return f"cut off: {others[0]}" if others and others[0].startswith("curl:") else ""


class Capabilities(FactBase[tuple[str, ...]]):
    """Return what a model can do, such as ``("completion", "tools")``; empty where the server does not tell."""

    def command(self, url: str, model: str, seconds: int = 30) -> str:
        """Return the command that asks /api/show."""
        return _curl(f"{url}/api/show", {"model": model}, seconds)

    def process(self, output: list[str]) -> tuple[str, ...]:
        """Return the list in the answer."""
        objects, *_ = _parts(output)
        for item in objects:
            if isinstance(found := item.get("capabilities"), list):
                return tuple(str(name) for name in found)
        return ()

    @staticmethod
    def default() -> tuple[str, ...]:
        """Return the value for a server that does not tell."""
        return ()


class Loaded(FactBase[Answer]):
    """Have a model loaded, and return how that went; the time is the one that the first user would have waited."""

    def command(self, url: str, model: str, seconds: int = 600) -> str:
        """Return the command that sends a request without a prompt."""
        return _curl(f"{url}/api/generate", {"model": model, "stream": False}, seconds)

    def process(self, output: list[str]) -> Answer:
        """Parse the answer."""
        objects, others, status, _, total = _parts(output)
        return Answer(status, total * 1000, error=_error(objects, others, status))


class Completion(FactBase[Answer]):
    """Ask a model, streaming."""

    def command(self, url: str, model: str, prompt: str, seconds: int = 120, tokens: int = 64) -> str:
        """Return the command; the answer is cut after a number of tokens, and the same question has the same answer."""
        options = {"num_predict": tokens, "seed": 1, "temperature": 0}
        body = {"model": model, "prompt": prompt, "stream": True, "options": options}
        return _curl(f"{url}/api/generate", body, seconds)

    def process(self, output: list[str]) -> Answer:
        """Parse the stream."""
        objects, others, status, first, _ = _parts(output)
        if error := _error(objects, others, status):
            return Answer(status, error=error)
        last = objects[-1] if objects else {}
        if not last.get("done"):
            return Answer(status, first * 1000, error="the stream ended before the answer did")
        text = "".join(str(item.get("response") or "") + str(item.get("thinking") or "") for item in objects)
        count, nanoseconds = int(last.get("eval_count") or 0), int(last.get("eval_duration") or 0)
        speed = count / nanoseconds * 1e9 if count > 1 and nanoseconds > 0 else None
        return Answer(status, first * 1000, speed, text, "" if text.strip() else "the answer is empty")


class Embedding(FactBase[Answer]):
    """Have a model embed a text."""

    def command(self, url: str, model: str, text: str, seconds: int = 120) -> str:
        """Return the command that asks /api/embed."""
        return _curl(f"{url}/api/embed", {"model": model, "input": text}, seconds)

    def process(self, output: list[str]) -> Answer:
        """Parse the answer: one vector, not all zero."""
        objects, others, status, _, total = _parts(output)
        if error := _error(objects, others, status):
            return Answer(status, error=error)
        vectors = objects[-1].get("embeddings") if objects else None
        if not (isinstance(vectors, list) and vectors and isinstance(vectors[0], list) and any(vectors[0])):
            return Answer(status, total * 1000, error="the embedding is empty or all zero")
        return Answer(status, total * 1000, text=f"{len(vectors[0])} dimensions")
