"""The catalogue of images, and what the settings block `images` makes of it."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from gpurack import problems
from gpurack.catalogue import CatalogueError, catalogue, with_digest
from gpurack.images import Credential, ImageSource
from gpurack.inventory import load
from gpurack.operations.docker import login_file
from gpurack.settings import Layer, RoleSettings, merge, settings_for

ROOT = Path(__file__).parents[2]
DIGEST = "sha256:" + "0" * 64
OLLAMA = f"ollama/ollama:{catalogue(ROOT / 'images.toml')['ollama'].tag}"


def test_every_image_of_the_catalogue_is_pinned_and_has_a_source() -> None:
    images = catalogue(ROOT / "images.toml")
    assert {"ollama", "anythingllm", "pgvector", "chroma", "qdrant", "milvus", "searxng", "valkey"} <= set(images)
    assert all(image.tag and image.source and image.licence for image in images.values())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[a]\nregistry = "docker.io"\n', "a.repository: Field required"),
        ('[a]\nregistry = "docker.io"\nrepository = "x"\ntag = "latest"\n', "a.tag: 'latest' is a moving tag"),
        ('[A B]\ntag = "1"\n', "line 1"),
        ('["A"]\ntag = "1"\n', "A: a name has small letters"),
        ("[a]\nregistry = docker.io\n", "Invalid value (at line 2"),
        ("a = 1\n", "a: Input should be a valid dictionary"),
    ],
)
def test_wrong_catalogue_is_refused_with_file_and_key(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "images.toml"
    file.write_text(text)
    with pytest.raises(CatalogueError) as error:
        catalogue(file)
    assert str(error.value).startswith(str(file)) and words in str(error.value)


def test_missing_catalogue_says_where_to_run(tmp_path: Path) -> None:
    with pytest.raises(CatalogueError, match="run from the repository's root"):
        catalogue(tmp_path / "images.toml")


def test_references() -> None:
    assert ImageSource().reference("ollama") == OLLAMA
    assert ImageSource().reference("milvus-etcd").startswith("quay.io/coreos/etcd:")
    mirrored = ImageSource(mirrors={"docker.io": "registry.example.org:5000/hub"})
    assert mirrored.reference("ollama") == f"registry.example.org:5000/hub/{OLLAMA}"
    assert mirrored.registry("ollama") == "registry.example.org:5000"
    assert mirrored.reference("milvus-etcd").startswith("quay.io/")
    pinned = ImageSource.model_validate({"overrides": {"ollama": {"digest": DIGEST}}})
    assert pinned.reference("ollama") == f"{OLLAMA}@{DIGEST}"
    other = ImageSource.model_validate({"overrides": {"ollama": {"tag": "0.32.14"}}})
    assert other.reference("ollama") == "ollama/ollama:0.32.14"


def test_another_tag_does_not_keep_the_catalogue_s_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images.toml").write_text(with_digest((ROOT / "images.toml").read_text(), "ollama", DIGEST))
    assert ImageSource().reference("ollama") == f"{OLLAMA}@{DIGEST}"
    other = ImageSource.model_validate({"overrides": {"ollama": {"tag": "0.32.14"}}})
    assert other.reference("ollama") == "ollama/ollama:0.32.14"


def test_an_archive_has_the_published_name_whatever_the_mirror(archive: Path) -> None:
    source = ImageSource.model_validate(
        {
            "archives": {"ollama": archive},
            "mirrors": {"docker.io": "r.example.org"},
            "credentials": {"r.example.org": LOGIN},
        }
    )
    assert source.reference("ollama") == OLLAMA and source.archive("ollama") == archive
    assert source.credential("ollama") is None
    assert source.credential("valkey") is not None


LOGIN = {"username": "puller", "password": "hunter2"}


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Return a small archive of the pinned image."""
    path = tmp_path / "image.tar"
    data = json.dumps([{"Config": "a" * 64 + ".json", "RepoTags": [OLLAMA], "Layers": []}]).encode()
    with tarfile.open(path, "w") as tar:
        member = tarfile.TarInfo("manifest.json")
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))
    return path


def test_archives_are_looked_into(archive: Path) -> None:
    def found(**values: Any) -> list[str]:
        return [message for _, message in ImageSource.model_validate(values).problems(["ollama"])]

    right = hashlib.sha256(archive.read_bytes()).hexdigest()
    assert found(archives={"ollama": str(archive)}) == []
    assert found(archives={"ollama": {"path": archive, "sha256": right}}) == []
    assert "does not have this SHA-256" in found(archives={"ollama": {"path": archive, "sha256": "0" * 64}})[0]
    [other] = found(archives={"ollama": archive}, overrides={"ollama": {"tag": "0.1.0"}})
    assert f"holds {OLLAMA}, not ollama/ollama:0.1.0" in other
    assert "gone.tar" in found(archives={"ollama": archive.with_name("gone.tar")})[0]
    assert found(archives={"valkey": "gone.tar"}) == []  # an image that is not run here


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"archives": {"olama": "x.tar"}}, "did you mean ollama"),
        ({"overrides": {"redis": {"tag": "1"}}}, "redis is not in images.toml; known are"),
        ({"overrides": {"ollama": {"tag": "latest"}}}, "moving tag"),
        ({"overrides": {"ollama": {"digest": "sha256:1"}}}, "match pattern"),
        ({"mirrors": {"docker.oi": "r.example.org"}}, "did you mean docker.io"),
        ({"mirrors": {"docker.io": "https://r.example.org"}}, "match pattern"),
        ({"credentials": {"r.example.org": {"username": "a:b", "password": "x"}}}, "match pattern"),
        ({"archives": {"ollama": "x.tar"}, "overrides": {"ollama": {"digest": DIGEST}}}, "an archive carries none"),
    ],
)
def test_wrong_settings_are_refused_with_a_reason(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        ImageSource.model_validate(values)


def test_login_file_is_docker_s_own() -> None:
    credential = Credential(username="puller", password="hunter2")  # type: ignore[arg-type]
    assert json.loads(login_file("docker.io", credential)) == {
        "auths": {"https://index.docker.io/v1/": {"auth": "cHVsbGVyOmh1bnRlcjI="}}
    }
    assert "registry.example.org:5000" in json.loads(login_file("registry.example.org:5000", credential))["auths"]


class ServerSettings(RoleSettings):
    images: ImageSource = ImageSource()
    moved = {"version": "set images.overrides.ollama.tag"}  # noqa: RUF012 - a ClassVar of the base

    @property
    def image_names(self) -> tuple[str, ...]:
        return ("ollama",)


class OtherSettings(ServerSettings):
    @property
    def image_names(self) -> tuple[str, ...]:
        return ("valkey",)


@pytest.fixture
def problems_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Return a function that writes an inventory and returns its problems as text."""
    monkeypatch.setattr(problems, "role_models", lambda: {"server": ServerSettings, "other": OtherSettings})
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "inventories/prod"
    (folder / "group_data").mkdir(parents=True)
    (tmp_path / "images.toml").write_text((ROOT / "images.toml").read_text())

    def write(text: str, hosts: str = 'gpu = [("gpu1", {}), ("gpu2", {})]') -> list[str]:
        (folder / "hosts.py").write_text(hosts)
        (folder / "group_data/all.py").write_text(text)
        monkeypatch.setattr("pyinfra_cli.util.PYTHON_CODES", {})  # pyinfra's cache of files, by relative name
        inventory = load("inventories/prod")
        return [str(problem) for problem in problems.problems_in(inventory, "inventories/prod/hosts.py")]

    return write


FILE = "inventories/prod/group_data/all.py [gpu1, gpu2]: "


def test_a_problem_of_the_shared_block_is_said_once_and_where_it_is_written(
    problems_of: Callable[..., list[str]],
) -> None:
    [line] = problems_of('images = {"overrides": {"ollama": {"tag": "latest"}}}')
    assert line.startswith(f"{FILE}images.overrides.ollama.tag = 'latest': 'latest' is a moving tag")
    [line] = problems_of('images = {"archives": {"ollama": "gone.tar"}}')
    assert line.startswith(f"{FILE}images.archives.ollama = 'gone.tar': gone.tar: No such file")
    [line] = problems_of('images = {"mirors": {}}')
    assert "images.mirors: unknown setting; did you mean mirrors?" in line
    [line] = problems_of('images = {"overrides": {"ollama": {"tagg": "1"}}}')
    assert "images.overrides.ollama.tagg: unknown setting; did you mean tag?" in line
    [line] = problems_of('images = "docker.io"')
    assert "images = 'docker.io': images is a dictionary, shared by all roles" in line
    [line] = problems_of("image = {}")
    assert "image: no role of this name; did you mean images?" in line


def test_a_problem_of_a_role_s_own_block_is_said_of_the_role(problems_of: Callable[..., list[str]]) -> None:
    [line] = problems_of('images = {}\nserver = {"images": {"archives": {"ollama": "gone.tar"}}}')
    assert line.startswith(f"{FILE}server.images.archives.ollama = 'gone.tar'")
    # Nothing is looked for on behalf of a role that is not applied.
    assert problems_of('images = {"archives": {"ollama": "a.tar"}}\nserver = {"enabled": False}\n') == []


def test_a_password_is_in_no_message(problems_of: Callable[..., list[str]]) -> None:
    found = problems_of('images = {"credentials": {"r.example.org": {"username": "u", "password": ["hunter2"]}}}')
    assert found and "hunter2" not in "".join(found)
    found = problems_of('images = {"credentials": {"r.example.org": "hunter2"}}')
    assert found and "hunter2" not in "".join(found)


def test_a_field_of_earlier_releases_names_its_new_place(problems_of: Callable[..., list[str]]) -> None:
    [line] = problems_of('server = {"version": "0.1"}')
    assert "server.version: no longer a setting of this role: set images.overrides.ollama.tag" in line


def test_a_wrong_catalogue_is_a_problem_of_its_own_file(problems_of: Callable[..., list[str]], tmp_path: Path) -> None:
    catalogue_file = tmp_path / "images.toml"
    catalogue_file.write_text(catalogue_file.read_text().replace('licence = "PostgreSQL"\n', ""))
    [line] = problems_of('images = {"archives": {"ollama": "gone.tar"}}')
    assert line == "images.toml: pgvector.licence: Field required"
    catalogue_file.unlink()
    [line] = problems_of("")
    assert "images.toml: images: No such file or directory; run from the repository's root" in line


def test_the_shared_block_is_beneath_the_role_s_own() -> None:
    layers = [
        Layer("group all", {"images": {"mirrors": {"docker.io": "a.example.org", "quay.io": "q.example.org"}}}),
        Layer("group gpu", {"server": {"images": {"mirrors": {"docker.io": "role.example.org"}}}}),
        Layer("host gpu1", {"images": {"mirrors": {"docker.io": "host.example.org"}, "overrides": {}}}),
    ]
    merged = merge(layers, "server", ServerSettings)
    assert merged.values["images"]["mirrors"] == {"docker.io": "role.example.org", "quay.io": "q.example.org"}
    own = merged.origin(("images", "mirrors", "docker.io"))
    shared = merged.origin(("images", "mirrors", "quay.io"))
    assert own and (own.name, own.block) == ("group gpu", None)
    assert shared and (shared.name, shared.block) == ("group all", "images")
    assert merge(layers, "server").values == {"images": {"mirrors": {"docker.io": "role.example.org"}}}


def test_the_repository_s_own_role_gets_the_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from roles.ollama.settings import OllamaSettings

    monkeypatch.setattr("pyinfra_cli.util.PYTHON_CODES", {})
    (tmp_path / "hosts.py").write_text('gpu = ["gpu1"]\n')
    (tmp_path / "group_data").mkdir()
    (tmp_path / "group_data/all.py").write_text('images = {"mirrors": {"docker.io": "r.example.org"}}\n')
    host = load(str(tmp_path)).get_host("gpu1")
    assert settings_for(host, OllamaSettings).images.reference("ollama") == f"r.example.org/{OLLAMA}"


NAMES = st.from_regex(r"[a-z][a-z0-9-]{0,6}", fullmatch=True)
HEX = st.text("0123456789abcdef", min_size=64, max_size=64)


@given(st.dictionaries(NAMES, st.booleans(), min_size=1, max_size=4), st.data(), HEX)
def test_a_digest_is_written_and_nothing_else_is_changed(
    images: dict[str, bool], data: st.DataObject, new: str
) -> None:
    import tomllib

    text = "".join(
        f'# about {name}\n[{name}]\nregistry = "docker.io"\ntag = "1" # [{name}]\n'
        + (f'digest = "{DIGEST}"\n' if has else "")
        + 'source = "s"\n\n'
        for name, has in images.items()
    )
    chosen = data.draw(st.sampled_from(sorted(images)))
    before, after = tomllib.loads(text), tomllib.loads(with_digest(text, chosen, f"sha256:{new}"))
    before[chosen]["digest"] = f"sha256:{new}"
    assert after == before
    assert with_digest(text, chosen, f"sha256:{new}").count("# about") == len(images)
