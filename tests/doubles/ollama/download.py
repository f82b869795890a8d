"""Pulling from a registry as `server/download.go` and `PullModel` of Ollama do it: parts, partial files, checks."""

import errno
import json
import os
import threading
import time
import urllib.error
import urllib.request

import store

PART_BYTES = int(os.environ.get("OLLAMA_DOUBLE_PART_BYTES", 100_000_000))
RETRIES = int(os.environ.get("OLLAMA_DOUBLE_RETRIES", 6))
# Factor of the waits between attempts, which are 1, 2, 4 ... seconds in Ollama.
PATIENCE = float(os.environ.get("OLLAMA_DOUBLE_PATIENCE", 1))
CHUNK, TICK = 32768, 0.06
_locks = {}


class PullError(Exception):
    """A pull came to nothing; the message is Ollama's."""


def pull(name, insecure, emit):
    """Pull a model, telling each step to ``emit``, which raises when nobody listens any more."""
    registry, namespace, model, tag = name
    base = f"{'http' if insecure else 'https'}://{registry}/v2/{namespace}/{model}"
    try:
        before = [entry["digest"] for entry in store.layers_of(store.manifest(name)[0])]
    except store.NotFoundError:
        before = []
    emit({"status": "pulling manifest"})
    raw = _manifest(f"{base}/manifests/{tag}")
    found = json.loads(raw)
    fresh = []
    for entry in store.layers_of(found):
        if blob(f"{base}/blobs/{entry['digest']}", entry["digest"], emit):
            fresh.append(entry["digest"])
    emit({"status": "verifying sha256 digest"})
    for digest in fresh:
        if (actual := store.sha256(store.blob(digest))) != digest:
            store.blob(digest).unlink()
            raise PullError(f"digest mismatch, file must be downloaded again: want {digest}, got {actual}")
    emit({"status": "writing manifest"})
    store.save(name, raw)
    if unused := set(before) - {entry["digest"] for entry in store.layers_of(found)}:
        emit({"status": "removing unused layers"})
        store.prune(unused)
    emit({"status": "success"})


def _manifest(url):
    request = urllib.request.Request(url, headers={"Accept": "application/vnd.docker.distribution.manifest.v2+json"})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.read()
    except urllib.error.HTTPError as error:
        reasons = {404: "file does not exist", 401: "unauthorized: access denied"}
        reason = reasons.get(error.code) or f"{error.code}: {error.read().decode(errors='replace')}"
        raise PullError(f"pull model manifest: {reason}") from None
    except OSError as error:
        raise PullError(f'pull model manifest: Get "{url}": {error}') from None


def blob(url, digest, emit):
    """Bring a blob; return whether it was not there."""
    path = store.blob(digest)
    with _locks.setdefault(digest, threading.Lock()):
        if path.exists():
            emit(_progress(digest, path.stat().st_size, path.stat().st_size))
            return False
        Download(url, digest, path).run(emit)
    return True


def _progress(digest, total, completed):
    return {"status": f"pulling {digest[7:19]}", "digest": digest, "total": total, "completed": completed}


class Download:
    """One blob on its way, in parts that are written down beside it."""

    def __init__(self, url, digest, path):
        self.url, self.digest, self.path = url, digest, path
        self.partial = path.with_name(path.name + "-partial")
        self.cancelled = threading.Event()
        self.errors = []
        self.parts = [json.loads(file.read_text()) for file in sorted(path.parent.glob(path.name + "-partial-*"))]
        if not self.parts:
            self._divide()
        self.total = sum(part["Size"] for part in self.parts)

    def _divide(self):
        try:
            with urllib.request.urlopen(urllib.request.Request(self.url, method="HEAD"), timeout=30) as answer:
                total = int(answer.headers["Content-Length"])
        except urllib.error.HTTPError as error:
            raise PullError("file does not exist" if error.code == 404 else f"{error.code}: {error.reason}") from None
        except OSError as error:
            raise PullError(str(error)) from None
        size = max(total // 16, min(PART_BYTES, max(total, 1)))
        for number, offset in enumerate(range(0, total, size)):
            self.parts.append({"N": number, "Offset": offset, "Size": min(size, total - offset), "Completed": 0})
            self._note(self.parts[-1])

    def _note(self, part):
        self.path.with_name(f"{self.partial.name}-{part['N']}").write_text(json.dumps(part))

    def run(self, emit):
        """Fetch what is missing and put the blob in place."""
        with self.partial.open("ab") as file:
            file.truncate(self.total)
        workers = [threading.Thread(target=self._fetch, args=(part,), daemon=True) for part in self.parts]
        for worker in workers:
            worker.start()
        try:
            while any(worker.is_alive() for worker in workers):
                emit(_progress(self.digest, self.total, self.completed))
                time.sleep(TICK)
        finally:
            self.cancelled.set()
            for worker in workers:
                worker.join()
        emit(_progress(self.digest, self.total, self.completed))
        if self.errors:
            raise PullError(self.errors[0])
        for part in self.parts:
            self.path.with_name(f"{self.partial.name}-{part['N']}").unlink()
        self.partial.rename(self.path)

    @property
    def completed(self):
        """Bytes that are there."""
        return sum(part["Completed"] for part in self.parts)

    def _fetch(self, part):
        problem = ""
        for attempt in range(RETRIES):
            if part["Completed"] == part["Size"] or self.cancelled.is_set():
                return
            try:
                self._chunk(part)
                if part["Completed"] == part["Size"] or self.cancelled.is_set():
                    return
                problem = "unexpected EOF"
            except OSError as error:
                if error.errno == errno.ENOSPC:
                    self.errors.append(f"write {self.partial}: no space left on device")
                    self.cancelled.set()
                    return
                problem = str(error)
            self.cancelled.wait(2**attempt * PATIENCE)
        self.errors.append(f"max retries exceeded: {problem}")

    def _chunk(self, part):
        start = part["Offset"] + part["Completed"]
        wanted = {"Range": f"bytes={start}-{part['Offset'] + part['Size'] - 1}"}
        try:
            with (
                urllib.request.urlopen(urllib.request.Request(self.url, headers=wanted), timeout=30) as answer,
                self.partial.open("r+b", buffering=0) as file,
            ):
                file.seek(start)
                while not self.cancelled.is_set() and (data := answer.read1(CHUNK)):
                    # The file was made full length with a hole: a full disk shows only now.
                    file.write(data)
                    part["Completed"] += len(data)
        finally:
            self._note(part)
