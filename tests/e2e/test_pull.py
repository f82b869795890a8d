"""Pulls that are cut anywhere, against the doubles of Ollama and its registry on this machine; no host is needed."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import pytest

from gpurack.lab import tinymodel
from gpurack.ollama import api as ollama
from gpurack.ollama.api import Api, OllamaError
from gpurack.ollama.names import ModelName
from gpurack.ollama.plan import File, Pull
from gpurack.ollama.transfer import upload
from gpurack.operations.ollama import pull_one
from tests.testbed.registry import Registry

PROGRAM = Path(__file__).parents[1] / "doubles/ollama/ollama.py"


@dataclass
class LocalProcess:
    """A script at work on this machine."""

    process: subprocess.Popen[str]

    def lines(self) -> Iterator[str]:
        """Yield its output."""
        assert self.process.stdout
        yield from self.process.stdout

    def finish(self) -> tuple[int, str]:
        """Return its exit status and errors."""
        errors = self.process.communicate()[1]
        return self.process.returncode, errors or ""


class LocalShell:
    """Runs scripts on this machine; a copy is cut after so many bytes."""

    cut_after: int | None = None

    def start(self, script: str) -> LocalProcess:
        """Start a script."""
        pipe = subprocess.PIPE
        return LocalProcess(subprocess.Popen(["sh", "-c", script], stdout=pipe, stderr=pipe, text=True))

    def feed(self, script: str, source: BinaryIO, sent: object) -> tuple[int, str]:
        """Run a script on the rest of a file."""
        del sent
        data = source.read()
        cut = self.cut_after is not None and self.cut_after < len(data)
        subprocess.run(["sh", "-c", script], input=data[: self.cut_after], check=True)
        return (255, "the connection is lost") if cut else (0, "")


@dataclass
class Bench:
    """Ollama and a registry on this machine, with a model of 2 MB."""

    registry: Registry
    api: Api
    store: Path
    name: ModelName
    digest: str
    weights: bytes

    def pull(self, digest: str | None = None) -> None:
        """Pull the model."""
        pull_one(self.api, Pull(self.name, digest), insecure=[self.registry.host], report=lambda *_: None)

    @property
    def served(self) -> str:
        """SHA-256 of the weights that are in the store."""
        blob = self.store / "blobs" / f"sha256-{hashlib.sha256(self.weights).hexdigest()}"
        return hashlib.sha256(blob.read_bytes()).hexdigest() if blob.exists() else ""


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """Run both doubles; Ollama tries each part once, so that every cut ends a pull."""
    folder = tmp_path_factory.mktemp("pull")
    weights = tinymodel.write(folder / "tiny.gguf", feed_forward=1024).read_bytes()
    with Registry(folder / "registry") as registry:
        digest = registry.publish("library/tiny:1", weights)
        told = {"OLLAMA_DOUBLE_ENGINE": "1", "OLLAMA_DOUBLE_RETRIES": "1", "OLLAMA_DOUBLE_PATIENCE": "0"}
        settings = {"OLLAMA_MODELS": str(folder / "models"), "OLLAMA_HOST": "127.0.0.1:21434"}
        server = subprocess.Popen(
            [sys.executable, str(PROGRAM), "serve"], env={**os.environ, **told, **settings}, stderr=subprocess.DEVNULL
        )
        api = Api(LocalShell(), "127.0.0.1:21434")
        api.wait()
        name = ModelName.parse(f"{registry.host}/library/tiny:1")
        yield Bench(registry, api, folder / "models", name, digest, weights)
        server.kill()
        server.wait()


@pytest.fixture(autouse=True)
def fresh(bench: Bench) -> None:
    """Begin without the model and without faults."""
    bench.registry.fault()
    if bench.name.key in bench.api.digests():
        bench.api.delete(bench.name)
    for part in (bench.store / "blobs").glob("*-partial*"):
        part.unlink()


@pytest.mark.parametrize("seed", range(20))
def test_a_pull_cut_at_any_byte_goes_on_from_there(bench: Bench, seed: int) -> None:
    """Cut once, anywhere: nothing is fetched twice, and what is there has its digest."""
    cut = random.Random(seed).randrange(1, len(bench.weights))  # noqa: S311 - a place, not a key
    bench.registry.fault(cut_after=cut)
    before = bench.registry.served
    with pytest.raises(OllamaError, match="max retries exceeded"):
        for _ in bench.api.request("POST", "/api/pull", {"model": str(bench.name), "insecure": True, "stream": True}):
            pass
    bench.registry.fault()
    bench.pull(bench.digest)
    sent = bench.registry.served - before
    small = 2000  # template, configuration
    assert len(bench.weights) <= sent <= len(bench.weights) + small
    assert bench.served == hashlib.sha256(bench.weights).hexdigest()
    assert bench.api.digests()[bench.name.key] == bench.digest


def test_one_pull_outlasts_many_cuts(bench: Bench) -> None:
    bench.registry.fault(cut_after=len(bench.weights) // 20)
    bench.pull(bench.digest)
    assert bench.served == hashlib.sha256(bench.weights).hexdigest()


def test_a_way_on_which_nothing_comes_is_given_up(bench: Bench) -> None:
    bench.registry.fault(cut_after=0)
    with pytest.raises(OllamaError, match="max retries exceeded"):
        bench.pull()


def test_another_version_than_the_pinned_one_gives_the_old_one_its_name_back(bench: Bench) -> None:
    """As where the registry cannot be asked before: found out only when it is there."""
    bench.pull(bench.digest)
    other = bench.registry.publish("library/tiny:1", bench.weights[:-1] + b"?")
    try:
        with pytest.raises(OllamaError, match=f"serves sha256:{other}"):
            bench.pull("0" * 64)
        assert bench.api.digests() == {bench.name.key: bench.digest}
        assert bench.served == hashlib.sha256(bench.weights).hexdigest()
        bench.pull(other)
        assert bench.api.digests() == {bench.name.key: other}
    finally:
        assert bench.registry.publish("library/tiny:1", bench.weights) == bench.digest


def test_an_unwanted_first_version_is_taken_away_again(bench: Bench) -> None:
    with pytest.raises(OllamaError, match="digest pins sha256:000"):
        bench.pull("0" * 64)
    assert bench.api.digests() == {}


@pytest.mark.parametrize("seed", range(5))
def test_a_copy_cut_at_any_byte_goes_on_from_there(tmp_path: Path, seed: int) -> None:
    data = random.Random(seed).randbytes(300_000)  # noqa: S311 - content, not a key
    path, told = tmp_path / "model.gguf", []
    path.write_bytes(data)
    file = File(str(path), path.name, hashlib.sha256(data).hexdigest(), len(data))
    shell = LocalShell()
    shell.cut_after = random.Random(seed).randrange(1, len(data))  # noqa: S311
    with pytest.raises(OllamaError, match="what has arrived is kept"):
        upload(shell, file, str(tmp_path / "store"), lambda *_: told.append(1))
    part = tmp_path / f"store/upload/{file.sha256}.part"
    assert part.stat().st_size == shell.cut_after
    shell.cut_after = None
    upload(shell, file, str(tmp_path / "store"), lambda *_: None)
    assert (tmp_path / f"store/blobs/sha256-{file.sha256}").read_bytes() == data and not part.exists()


def test_a_file_that_was_changed_on_the_way_is_thrown_away(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"after")
    file = File(str(path), path.name, hashlib.sha256(b"before").hexdigest(), 6)
    with pytest.raises(OllamaError, match="was the file changed meanwhile"):
        upload(LocalShell(), file, str(tmp_path / "store"), lambda *_: None)
    assert not list((tmp_path / "store/upload").iterdir()) and not list((tmp_path / "store/blobs").iterdir())


def test_a_server_that_is_away_is_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ollama, "RESTART_SECONDS", 1)
    began = time.monotonic()
    with pytest.raises(ollama.LostError, match="does not answer"):
        ollama.pull(Api(LocalShell(), "127.0.0.1:9"), ModelName.parse("a"), insecure=False, report=lambda *_: None)
    assert time.monotonic() - began < 20
