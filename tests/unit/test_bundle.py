"""Bundles: the manifest and its signature, what is compared, what an inventory needs, the repository apt reads."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from gpurack.bundle import create as making
from gpurack.bundle import manifest, models, packages, signing
from gpurack.bundle.cli import bundle as bundle_command
from gpurack.bundle.manifest import BundleError, Manifest
from gpurack.bundle.settings import BundleSettings
from gpurack.facts.bundle import FileSizes
from gpurack.inventory import load
from gpurack.ollama.names import ModelName
from gpurack.ollama.pulled import PulledModel
from gpurack.rendering import render
from gpurack.settings import layers_of, settings_of
from roles.base.settings import BaseSettings
from roles.docker.packages import choose
from roles.docker.settings import DockerSettings
from roles.ollama_models.settings import OllamaModelsSettings

SEGMENT = st.from_regex(r"[A-Za-z0-9_+~:@-][A-Za-z0-9._+~:@-]{0,9}", fullmatch=True)
PATHS = st.lists(SEGMENT, min_size=1, max_size=3).map("/".join)
HEX = st.text("0123456789abcdef", min_size=64, max_size=64)
ENTRIES = st.dictionaries(PATHS, st.fixed_dictionaries({"size": st.integers(0, 2**50), "sha256": HEX}), max_size=5)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=10,
)


def document(**changes: Any) -> dict[str, Any]:
    """Return a manifest's document."""
    return {
        "format": 1,
        "created": "2026-01-01T00:00:00+00:00",
        "gpurack": "0.1.0",
        "inventory": "inventories/prod",
        "releases": ["trixie"],
        "images": {},
        "files": {},
        **changes,
    }


@given(ENTRIES)
def test_a_manifest_is_read_as_it_was_written(files: dict[str, Any]) -> None:
    first = manifest.parse(json.dumps(document(files=files)).encode(), "m")
    assert manifest.parse(first.text().encode(), "m") == first
    assert {path: entry.model_dump() for path, entry in first.files.items()} == files


@given(st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_no_document_makes_anything_but_a_bundle_error(data: bytes) -> None:
    with pytest.raises(BundleError, match=r"^m is not a bundle's manifest"):
        manifest.parse(data, "m")


@given(st.sampled_from(sorted(document())), JSON)
def test_a_wrong_value_is_named_or_right(key: str, value: Any) -> None:
    try:
        parsed = manifest.parse(json.dumps(document(**{key: value})).encode(), "m")
    except BundleError as error:
        assert key in str(error) or "image" in str(error)
    else:
        assert isinstance(parsed, Manifest)


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../x", "a/../b", "a//b", "", ".", "a\nb", "key.gpg", "MANIFEST.json", ".work/x", "a b"]
)
def test_paths_that_lead_out_are_refused(path: str) -> None:
    entry = {"size": 1, "sha256": "0" * 64}
    with pytest.raises(BundleError, match="files"):
        manifest.parse(json.dumps(document(files={path: entry})).encode(), "m")


def test_an_image_must_be_among_the_files() -> None:
    image = {"reference": "a:1", "path": "images/a.tar"}
    with pytest.raises(BundleError, match=r"images/a.tar is not among the files"):
        manifest.parse(json.dumps(document(images={"a": image})).encode(), "m")


@pytest.fixture(scope="module")
def deb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a small package."""
    folder = tmp_path_factory.mktemp("deb")
    (folder / "x/DEBIAN").mkdir(parents=True)
    control = (
        "Package: gpurack-test\nVersion: 1:2.0\nArchitecture: all\nMaintainer: x <x@example.org>\nDescription: x\n"
    )
    (folder / "x/DEBIAN/control").write_text(control)
    target = folder / "gpurack-test_1%3a2.0_all.deb"
    subprocess.run(["dpkg-deb", "--build", "--root-owner-group", "x", str(target)], cwd=folder, check=True)
    return target


@pytest.fixture
def bundle(tmp_path: Path, deb: Path) -> tuple[Path, str]:
    """Return a bundle with one package and one image, and the fingerprint of its key."""
    folder = tmp_path / "site.bundle"
    repository = folder / "apt/trixie"
    packages.gather([deb], repository, link=False)
    (folder / "images").mkdir()
    archive_of(folder / "images/ollama.tar")
    image = manifest.BundledImage(reference="ollama/ollama:0.32.15", path="images/ollama.tar")
    with signing.signer() as key:
        packages.index(repository, "trixie", key)
        key.export(folder / manifest.KEY)
        listed = manifest.entries(folder)
        made = manifest.parse(json.dumps(document()).encode(), "m").model_copy(
            update={"files": listed, "images": {"ollama": image}}
        )
        (folder / manifest.MANIFEST).write_text(made.text())
        key.detached(folder / manifest.MANIFEST, folder / manifest.SIGNATURE)
        return folder, key.fingerprint


def archive_of(path: Path) -> None:
    """Write an archive of the pinned image."""
    data = json.dumps([{"Config": "a" * 64 + ".json", "RepoTags": ["ollama/ollama:0.32.15"], "Layers": []}])
    document = path.with_name("manifest.json")
    document.write_text(data)
    with tarfile.open(path, "w") as tar:
        tar.add(document, "manifest.json")
    document.unlink()


def test_signature(bundle: tuple[Path, str]) -> None:
    folder, fingerprint = bundle
    assert signing.check(folder, fingerprint) == fingerprint
    assert signing.check(folder, None) == fingerprint
    with pytest.raises(BundleError, match="another bundle"):
        signing.check(folder, "0" * 40)
    (folder / manifest.MANIFEST).write_text(json.dumps(document()))
    with pytest.raises(BundleError, match="not what was signed"):
        signing.check(folder, fingerprint)
    (folder / manifest.SIGNATURE).unlink()
    with pytest.raises(BundleError, match="is missing"):
        signing.check(folder, fingerprint)


def test_a_bundle_signed_anew_by_somebody_else_is_refused(bundle: tuple[Path, str]) -> None:
    folder, fingerprint = bundle
    with signing.signer() as other:
        (folder / manifest.MANIFEST).write_text(json.dumps(document()))
        other.detached(folder / manifest.MANIFEST, folder / manifest.SIGNATURE)
        other.export(folder / manifest.KEY)
    with pytest.raises(BundleError, match="another bundle"):
        signing.check(folder, fingerprint)


def test_comparison_names_every_difference(bundle: tuple[Path, str]) -> None:
    folder, _ = bundle
    listed = manifest.read(folder)
    assert manifest.compare(folder, listed).ok
    image = folder / "images/ollama.tar"
    data = bytearray(image.read_bytes())
    data[-1] ^= 1
    image.write_bytes(data)
    (folder / "apt/trixie/InRelease").unlink()
    (folder / "wheels").mkdir()
    (folder / "wheels/x.whl").symlink_to("/etc/passwd")
    found = manifest.compare(folder, listed)
    assert list(found.lines()) == [
        "images/ollama.tar: tampered with or damaged",
        "apt/trixie/InRelease: missing",
        "wheels/x.whl: not in the manifest",
    ]
    assert not manifest.compare(folder, listed, content=False).tampered, "sizes do not tell"


def test_what_is_no_bundle_is_said(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no bundle"):
        manifest.read(tmp_path)
    (tmp_path / manifest.WORK).mkdir()
    with pytest.raises(BundleError, match="create` again"):
        manifest.read(tmp_path)
    (tmp_path / "x.tar").write_text("")
    with pytest.raises(BundleError, match="unpack it first"):
        manifest.read(tmp_path / "x.tar")


def test_settings_look_at_the_bundle(bundle: tuple[Path, str], tmp_path: Path) -> None:
    folder, fingerprint = bundle
    spaced = " ".join(fingerprint[i : i + 4] for i in range(0, 40, 4)).lower()
    assert BundleSettings(path=folder, fingerprint=spaced).manifest is not None
    (folder / "apt/trixie/Packages").unlink()
    with pytest.raises(ValidationError, match=r"apt/trixie/Packages: missing: see `gpurack bundle verify"):
        BundleSettings(path=folder)
    with pytest.raises(ValidationError, match="no bundle"):
        BundleSettings(path=tmp_path / "none")


def test_images_of_the_bundle_are_beneath_the_site_s_own(
    bundle: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyinfra_cli.util.PYTHON_CODES", {})
    folder, _ = bundle
    (tmp_path / "hosts.py").write_text('gpu = ["gpu1", ("gpu2", {"images": {"archives": {"ollama": "own.tar"}}})]\n')
    (tmp_path / "group_data").mkdir()
    (tmp_path / "group_data/all.py").write_text(f'bundle = {{"path": {str(folder)!r}}}\n')
    inventory = load(str(tmp_path / "hosts.py"))
    first, second = inventory.get_host("gpu1"), inventory.get_host("gpu2")
    images = settings_of(first, "ollama").images
    assert images.archive("ollama") == folder / "images/ollama.tar"
    assert images.archives["ollama"].sha256 == hashlib.sha256((folder / "images/ollama.tar").read_bytes()).hexdigest()
    assert layers_of(first)[0].name == f"bundle {folder}"
    assert str(settings_of(second, "ollama").images.archive("ollama")) == "own.tar"


def test_repository_is_one_apt_takes(bundle: tuple[Path, str], tmp_path: Path) -> None:
    """Without a network: the real apt reads the index, checks its signature, and finds the package in the pool."""
    folder, _ = bundle
    repository, root = folder / "apt/trixie", tmp_path / "root"
    for name in ("lists/partial", "archives/partial", "etc"):
        (root / name).mkdir(parents=True)
    (root / "status").write_text("")
    (root / "list").write_text(f"deb [signed-by={folder / manifest.KEY}] file:{repository} ./\n")
    options = {
        "Dir::Etc": root / "etc",
        "Dir::Etc::SourceList": root / "list",
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::State::Lists": root / "lists",
        "Dir::State::status": root / "status",
        "Dir::Cache": root,
        "Dir::Cache::Archives": root / "archives",
        "APT::Sandbox::User": "root",
        "Debug::NoLocking": "true",
    }
    apt = ["apt-get", "-q", *(word for key, value in options.items() for word in ("-o", f"{key}={value}"))]
    update = [*apt, "update", "-o", "APT::Update::Error-Mode=any"]
    done = subprocess.run(update, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    done = subprocess.run([*apt, "download", "gpurack-test"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and list(tmp_path.glob("gpurack-test_1%3a2.0_all.deb")), done.stderr
    index = repository / "Packages"
    index.write_text(index.read_text().replace("1:2.0", "1:3.0"))
    for file in (root / "lists").glob("*_*"):
        file.unlink()
    again = subprocess.run(update, capture_output=True, text=True, check=False)
    assert again.returncode != 0, "an index that was changed is not what was signed"


def test_pool_has_just_what_is_wanted(tmp_path: Path, deb: Path) -> None:
    pool = tmp_path / "pool"
    pool.mkdir()
    (pool / "old_1_all.deb").write_text("x")
    packages.gather([deb], tmp_path, link=False)
    assert [file.name for file in pool.iterdir()] == ["gpurack-test_1:2.0_all.deb"]
    packages.seed(tmp_path, tmp_path / "archives")
    assert [file.name for file in (tmp_path / "archives").iterdir()] == ["gpurack-test_1%3a2.0_all.deb"]


def test_packages_apt_chose_are_found_among_the_downloads(tmp_path: Path) -> None:
    for name in ("a_1%3a2_amd64.deb", "b_1_all.deb", "b_2_all.deb"):
        (tmp_path / name).write_text("")
    simulated = "Inst a (1:2 Debian:13/stable [amd64])\nInst b (2 Debian:13/stable [all])\nConf a (1:2 x [amd64])\n"
    assert [file.name for file in packages._chosen(simulated, tmp_path)] == ["a_1%3a2_amd64.deb", "b_2_all.deb"]
    with pytest.raises(BundleError, match="c 1 was not downloaded"):
        packages._chosen("Inst c (1 Debian:13/stable [amd64])\n", tmp_path)


def test_need_of_an_inventory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyinfra_cli.util.PYTHON_CODES", {})
    (tmp_path / "hosts.py").write_text(
        'gpu = [("gpu1", {"base": {"packages": ["jq"]}}), ("gpu2", {"docker": {"enabled": False}})]\n'
    )
    (tmp_path / "group_data").mkdir()
    (tmp_path / "group_data/all.py").write_text(
        'bundle = {"packages": ["nvidia-driver"]}\nbase = {"mirror": "http://m"}\n'
    )
    need = making.need_of(load(str(tmp_path / "hosts.py")), ("bookworm", "trixie"))
    assert {"chrony", "jq", "sudo", "docker.io", "docker-compose", "nvidia-driver"} <= need.packages["trixie"]
    assert "docker-cli" in need.packages["trixie"] - need.packages["bookworm"]
    assert list(need.images) == ["ollama"] and need.mirrors[0] == "http://m"
    monkeypatch.setattr("pyinfra_cli.util.PYTHON_CODES", {})
    (tmp_path / "hosts.py").write_text(
        'gpu = ["gpu1", ("gpu2", {"images": {"overrides": {"ollama": {"tag": "0.1.0"}}}})]\n'
    )
    with pytest.raises(BundleError, match=r"on one host and ollama/ollama:0\.1\.0 on gpu2"):
        making.need_of(load(str(tmp_path / "hosts.py")), ("trixie",))


def test_with_a_bundle_no_other_source_is_written(bundle: tuple[Path, str]) -> None:
    own = {"path": bundle[0]}
    text = render("templates/base/debian.sources.j2", settings=BaseSettings(bundle=own), codename="trixie")
    assert "URIs: file:/var/lib/gpurack/bundle/apt\n" in text and "http" not in text
    assert "http" in render("templates/base/debian.sources.j2", settings=BaseSettings(), codename="trixie")
    assert choose(DockerSettings(), "debian", "bookworm").apt_files
    assert not choose(DockerSettings(bundle=own), "debian", "bookworm").apt_files
    with pytest.raises(ValidationError, match="use source=debian"):
        DockerSettings(bundle=own, source="docker")


def test_tar_has_the_manifest_first(bundle: tuple[Path, str], tmp_path: Path) -> None:
    making.pack(bundle[0], tmp_path / "site.tar")
    with tarfile.open(tmp_path / "site.tar") as tar:
        names = tar.getnames()
        tar.extractall(tmp_path / "again", filter="data")
    assert names[:3] == [manifest.MANIFEST, manifest.SIGNATURE, manifest.KEY]
    assert manifest.compare(tmp_path / "again", manifest.read(tmp_path / "again")).ok
    with pytest.raises(BundleError, match="not finished"):
        making.pack(tmp_path, tmp_path / "x.tar")


def test_tar_is_verified_without_unpacking(bundle: tuple[Path, str], tmp_path: Path) -> None:
    folder, fingerprint = bundle
    archive = tmp_path / "site.tar"
    making.pack(folder, archive)
    found = CliRunner().invoke(bundle_command, ["verify", str(archive), "--fingerprint", fingerprint])
    assert found.exit_code == 0 and "files as they were made" in found.output, found.output
    (folder / "images/ollama.tar").write_bytes(b"x")
    (folder / "apt/trixie/InRelease").rename(folder / "apt/trixie/Stray")
    making.pack(folder, archive)
    found = CliRunner().invoke(bundle_command, ["verify", str(archive)])
    assert found.exit_code == 1
    assert found.stderr.splitlines() == [
        "images/ollama.tar: tampered with or damaged",
        "apt/trixie/InRelease: missing",
        "apt/trixie/Stray: not in the manifest",
    ]
    data = archive.read_bytes()
    archive.write_bytes(data[: len(data) // 2])
    found = CliRunner().invoke(bundle_command, ["verify", str(archive)])
    assert found.exit_code == 1 and str(archive) in found.stderr
    archive.write_bytes(b"no tar at all" * 100)
    found = CliRunner().invoke(bundle_command, ["verify", str(archive)])
    assert found.exit_code == 1 and "is not a bundle" in found.stderr


def test_file_sizes_of_a_host() -> None:
    assert FileSizes().process(["12 pool/a b.deb", "0 InRelease", "noise"]) == {"pool/a b.deb": 12, "InRelease": 0}


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[PulledModel, Path, str]]:
    """Serve a model from a double of Ollama's registry; return the model, the double's folder, and its address."""
    program = Path(__file__).parents[1] / "doubles/registry/registry.py"
    spec = importlib.util.spec_from_file_location("registry_double", program)
    assert spec and spec.loader
    double = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(double)
    digest = double.publish(tmp_path / "registry", "library/tiny:1b", bytes(range(256)) * 2000)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, str(program), str(tmp_path / "registry"), "127.0.0.1", str(port)], stdout=subprocess.DEVNULL
    )
    address = f"127.0.0.1:{port}"
    for _ in range(200):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            break
        time.sleep(0.05)
    yield PulledModel(ModelName.parse(f"{address}/library/tiny:1b"), f"sha256:{digest}"), tmp_path, address
    process.terminate()
    process.wait()


def fault(address: str, **what: Any) -> None:
    """Say what goes wrong at the double from now on."""
    urlopen(Request(f"http://{address}/_fault", data=json.dumps(what).encode(), method="POST")).close()


def test_a_model_is_fetched_whole_and_once(served: tuple[PulledModel, Path, str]) -> None:
    model, folder, address = served
    size = models.fetch(model, folder / "models", folder / "partial")
    blobs = list((folder / "models/blobs").iterdir())
    assert size == sum(blob.stat().st_size for blob in blobs) > 512_000
    assert all(f"sha256-{manifest.sha256(blob)}" == blob.name for blob in blobs)
    before = urlopen(f"http://{address}/_served").read()
    models.fetch(model, folder / "models", folder / "partial")
    assert urlopen(f"http://{address}/_served").read() == before
    (folder / "models/blobs/sha256-stray").write_text("x")
    models.drop_others(folder / "models", [model])
    assert sorted((folder / "models/blobs").iterdir()) == sorted(blobs)
    models.drop_others(folder / "models", [])
    assert not list((folder / "models/blobs").iterdir())


def test_a_cut_download_goes_on(served: tuple[PulledModel, Path, str]) -> None:
    model, folder, address = served
    fault(address, cut_after=60_000)
    with pytest.raises(BundleError, match=f"cut off after {models.TRIES * 60_000} of 512000 bytes"):
        models.fetch(model, folder / "models", folder / "partial")
    assert not (folder / "models/manifests").exists()
    fault(address)
    models.fetch(model, folder / "models", folder / "partial")
    served_bytes = int(urlopen(f"http://{address}/_served").read())
    assert served_bytes < 512_000 + 10_000, "what had come was not asked for again"


def test_a_corrupt_blob_is_not_kept(served: tuple[PulledModel, Path, str]) -> None:
    model, folder, address = served
    fault(address, corrupt=True)
    with pytest.raises(BundleError, match="has another content than its name says"):
        models.fetch(model, folder / "models", folder / "partial")
    fault(address)
    assert models.fetch(model, folder / "models", folder / "partial") > 0


def test_another_model_than_the_pinned_one_is_refused(served: tuple[PulledModel, Path, str]) -> None:
    model, folder, address = served
    with pytest.raises(BundleError, match="digest pins sha256:000"):
        models.fetch(PulledModel(model.name, "sha256:" + "0" * 64), folder / "models", folder / "partial")
    fault(address, manifests_status=404)
    with pytest.raises(BundleError, match="has no library/tiny:1b"):
        models.fetch(model, folder / "models", folder / "partial")


@given(st.binary(max_size=60) | JSON.map(lambda value: json.dumps(value).encode()))
def test_no_document_makes_anything_but_an_error_of_the_model(data: bytes) -> None:
    with pytest.raises(BundleError, match="m: not a model's manifest"):
        models.blobs_of(data, "m")


def test_models_that_come_from_registries() -> None:
    digest = "sha256:" + "a" * 64
    settings = OllamaModelsSettings.model_validate(
        {
            "models": {
                "deepseek-r1:7b": {"digest": digest},
                "chat": {"base": "deepseek-r1:7b", "system": "You are terse."},
                "registry.example.org:5000/own/m:1": {"parameters": {"num_ctx": 4096}},
                "gone:1": {"state": "absent"},
            },
            "insecure_registries": ["registry.example.org:5000"],
        }
    )
    found = {str(model.name): (model.digest, model.plain) for model in settings.models_pulled}
    assert found == {"deepseek-r1:7b": (digest, False), "registry.example.org:5000/own/m:1": (None, True)}
