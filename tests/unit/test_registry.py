"""The registry client and `gpurack images pin`, against the double in tests/doubles/container-registry."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from pydantic import SecretStr

from gpurack.catalogue import catalogue
from gpurack.images import Credential, ImageSource
from gpurack.images_cli import images
from gpurack.registry import Registry, RegistryError, digest_of

ROOT = Path(__file__).parents[2]
DOUBLE = ROOT / "tests/doubles/container-registry/registry.py"
DIGEST = "sha256:" + "d" * 64
PULLER = Credential(username="puller", password=SecretStr("hunter2"))
SERVED = {"manifests": {"ollama/ollama:1": "{}"}, "digest_header": DIGEST}


@pytest.fixture(scope="module")
def double(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """Run the double; return its folder and its name in references."""
    folder = tmp_path_factory.mktemp("registry")
    (folder / "config.json").write_text("{}")
    process = subprocess.Popen([sys.executable, str(DOUBLE), str(folder)])
    try:
        for _ in range(200):
            if (folder / "port").exists():
                break
            time.sleep(0.05)
        yield folder, f"127.0.0.1:{(folder / 'port').read_text()}"
    finally:
        process.terminate()
        process.wait()


@pytest.fixture
def serving(double: tuple[Path, str]) -> Callable[..., str]:
    """Return a function that says what the double answers from now on, and returns its name."""

    def configure(**config: Any) -> str:
        (double[0] / "config.json").write_text(json.dumps(config))
        (double[0] / "requests.log").write_text("")
        return double[1]

    return configure


def test_digest_of_a_tag(serving: Callable[..., str], double: tuple[Path, str]) -> None:
    assert Registry(serving(**SERVED)).digest("ollama/ollama", "1") == DIGEST
    assert (double[0] / "requests.log").read_text() == "HEAD /v2/ollama/ollama/manifests/1 \n"


def test_digest_that_only_the_body_tells(serving: Callable[..., str]) -> None:
    name = serving(manifests={"a/b:1": '{"schemaVersion": 2}'})
    expected = hashlib.sha256(b'{"schemaVersion": 2}').hexdigest()
    assert Registry(name).digest("a/b", "1") == f"sha256:{expected}"


@pytest.mark.parametrize("auth", ["basic", "bearer"])
def test_login(serving: Callable[..., str], auth: str) -> None:
    name = serving(**SERVED, auth=auth, user="puller", password="hunter2")
    assert Registry(name, PULLER).digest("ollama/ollama", "1") == DIGEST
    with pytest.raises(RegistryError, match=r"refuses the login in images.credentials"):
        Registry(name, Credential(username="x", password=SecretStr("y"))).digest("ollama/ollama", "1")
    with pytest.raises(RegistryError, match=r"asks for a login.*images.credentials"):
        Registry(name).digest("ollama/ollama", "1")


def test_token_without_a_login(serving: Callable[..., str], double: tuple[Path, str]) -> None:
    """What Docker Hub does for everybody."""
    assert Registry(serving(**SERVED, auth="bearer")).digest("ollama/ollama", "1") == DIGEST
    assert (double[0] / "requests.log").read_text().splitlines()[1] == "GET /token "


def test_a_login_is_not_sent_in_the_clear(serving: Callable[..., str]) -> None:
    name = serving(**SERVED, auth="bearer", realm="http://tokens.example.org/token")
    with pytest.raises(RegistryError, match="without TLS"):
        Registry(name, PULLER).digest("ollama/ollama", "1")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"manifests": {}}, "has no ollama/ollama:1"),
        ({"status": 429, "retry_after": "3600"}, "too many requests.*wait 3600"),
        ({"status": 500}, "HTTP 500"),
        ({"status": 403}, "asks for a login"),
        ({**SERVED, "digest_header": "md5:1"}, "is no digest"),
    ],
)
def test_refusals_are_explained(serving: Callable[..., str], config: dict[str, Any], words: str) -> None:
    with pytest.raises(RegistryError, match=words):
        Registry(serving(**config)).digest("ollama/ollama", "1")


def test_no_registry_there() -> None:
    with pytest.raises(RegistryError, match=r"127.0.0.1:9 cannot be reached"):
        Registry("127.0.0.1:9").digest("a", "1")


def test_a_mirror_is_asked_in_place_of_the_registry(serving: Callable[..., str]) -> None:
    image = catalogue(ROOT / "images.toml")["ollama"]
    name = serving(manifests={f"hub/ollama/ollama:{image.tag}": "{}"}, digest_header=DIGEST)
    assert digest_of(image, ImageSource(mirrors={"docker.io": f"{name}/hub"})) == DIGEST


def test_command_pins(serving: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(ROOT / "images.toml", tmp_path)
    shutil.copytree(ROOT / "roles", tmp_path / "roles")
    monkeypatch.setattr("pyinfra_cli.util.PYTHON_CODES", {})
    monkeypatch.chdir(tmp_path)
    tag = catalogue()["ollama"].tag
    name = serving(manifests={f"ollama/ollama:{tag}": "{}"}, digest_header=DIGEST)
    (tmp_path / "hosts.py").write_text(
        f'gpu = [("gpu1", {{"images": {{"mirrors": {{"docker.io": "{name}"}}}}, "ollama": {{"accelerator": "cpu"}}}})]'
    )
    pin = ["pin", "ollama", "--inventory", "hosts.py"]
    first = CliRunner().invoke(images, pin)
    assert first.exit_code == 0 and first.output == f"ollama ollama/ollama:{tag} {DIGEST} new\n"
    assert CliRunner().invoke(images, [*pin, "--write"]).exit_code == 0
    assert catalogue()["ollama"].digest == DIGEST
    assert "as in images.toml" in CliRunner().invoke(images, pin).output
    serving(manifests={f"ollama/ollama:{tag}": "{}"}, digest_header="sha256:" + "e" * 64)
    moved = CliRunner().invoke(images, pin)
    assert moved.exit_code == 1 and "CHANGED" in moved.output
    assert CliRunner().invoke(images, ["pin", "olama"]).exit_code == 2
    shown = CliRunner().invoke(images, ["show", "hosts.py"])
    assert f"{name}/ollama/ollama:{tag}@{DIGEST}" in shown.output, shown.output
