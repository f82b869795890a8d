"""Settings and Compose file of the ollama role."""

from __future__ import annotations

import io
import json
import tarfile
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from gpurack import imagearchive
from gpurack.gpu.runtime import Mode, reservation
from gpurack.images import ImageSource
from gpurack.rendering import render
from roles.ollama.settings import OllamaSettings

REFERENCE = ImageSource().reference("ollama")


def compose(mode: Mode = Mode.RUNTIME, **values: Any) -> str:
    """Return the Compose file of some settings, on a host whose containers get GPUs in this way."""
    settings = OllamaSettings(**values)
    gpus = None
    if settings.accelerator == "nvidia":
        gpus = reservation(mode, settings.gpu_count, settings.gpu_device_ids)
    return render("templates/ollama/compose.yaml.j2", settings=settings, reservation=gpus)


def archive_at(path: Path, documents: dict[str, Any], mode: str = "w") -> Path:
    """Write an archive of JSON documents."""
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, document in documents.items():
            data = json.dumps(document).encode()
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Return a small archive of the pinned image."""
    manifest = [{"Config": "blobs/sha256/" + "a" * 64, "RepoTags": [REFERENCE], "Layers": []}]
    return archive_at(tmp_path / "image.tar", {"layer": "x", "manifest.json": manifest})


def test_gpu_profile_reserves_all_gpus_by_default() -> None:
    text = compose()
    assert "driver: nvidia\n              count: all\n              capabilities: [gpu]\n" in text


def test_gpu_profile_with_a_count_or_with_chosen_devices() -> None:
    assert "              count: 2\n" in compose(gpu_count=2)
    text = compose(gpu_device_ids=["0", "GPU-8f1f9a3c-1111-2222-3333-444455556666"])
    assert 'device_ids: ["0", "GPU-8f1f9a3c-1111-2222-3333-444455556666"]' in text and "count:" not in text


def test_gpu_profile_names_cdi_devices_where_docker_knows_them() -> None:
    start = "            - driver: cdi\n              device_ids: "
    assert f'{start}["nvidia.com/gpu=all"]' in compose(Mode.CDI)
    assert f'{start}["nvidia.com/gpu=0", "nvidia.com/gpu=1"]' in compose(Mode.CDI, gpu_count=2)
    text = compose(Mode.CDI, gpu_device_ids=["1:0", "MIG-c7384736-a75d-5afc-978f-d2f1294409fd"])
    assert f'{start}["nvidia.com/gpu=1:0", "nvidia.com/gpu=MIG-c7384736-a75d-5afc-978f-d2f1294409fd"]' in text
    assert "count:" not in text


def test_a_model_is_spread_only_if_asked_for() -> None:
    assert OllamaSettings(spread=True).environment["OLLAMA_SCHED_SPREAD"] == "1"
    assert "OLLAMA_SCHED_SPREAD" not in OllamaSettings().environment


def test_a_count_is_refused_where_gpus_are_divided() -> None:
    mig = {"mig": {"layouts": [{"gpu": "all", "profiles": {"3g.40gb": 2}}]}}
    [(location, message)] = OllamaSettings(gpu_count=1).problems_on("h", mig)
    assert location == ("gpu_count",) and "name MIG devices" in message
    assert not list(OllamaSettings(gpu_device_ids=["0:0"]).problems_on("h", mig))
    assert not list(OllamaSettings(gpu_count=1).problems_on("h", {"mig": {"layouts": [{"gpu": "all"}]}}))
    assert not list(OllamaSettings(gpu_count=1).problems_on("h", {"mig": {**mig["mig"], "enabled": False}}))


def test_cpu_profile_reserves_nothing() -> None:
    assert "reservations" not in compose(accelerator="cpu")


def test_api_is_published_on_loopback_unless_said_otherwise() -> None:
    assert '- "127.0.0.1:11434:11434"' in compose()
    assert '- "10.0.0.5:8080:11434"' in compose(publish_address="10.0.0.5", publish_port=8080)
    assert '- "[::1]:11434:11434"' in compose(publish_address="::1")


def test_environment_has_ollamas_names() -> None:
    settings = OllamaSettings(
        keep_alive=timedelta(hours=2),
        num_parallel=4,
        max_loaded_models=2,
        context_length=8192,
        kv_cache_type="q8_0",
        flash_attention=True,
        origins=["https://chat.example.org", "app://local"],
    )
    assert settings.environment == {
        "OLLAMA_HOST": "0.0.0.0:11434",
        "OLLAMA_KEEP_ALIVE": "7200s",
        "OLLAMA_NUM_PARALLEL": "4",
        "OLLAMA_MAX_LOADED_MODELS": "2",
        "OLLAMA_MAX_QUEUE": "512",
        "OLLAMA_CONTEXT_LENGTH": "8192",
        "OLLAMA_KV_CACHE_TYPE": "q8_0",
        "OLLAMA_FLASH_ATTENTION": "1",
        "OLLAMA_NO_CLOUD": "1",
        "OLLAMA_ORIGINS": "https://chat.example.org,app://local",
    }


def test_what_ollama_decides_itself_is_left_out() -> None:
    names = set(OllamaSettings(keep_alive="forever").environment)
    assert not names & {"OLLAMA_FLASH_ATTENTION", "OLLAMA_CONTEXT_LENGTH", "OLLAMA_MAX_LOADED_MODELS"}
    assert OllamaSettings(keep_alive="forever").environment["OLLAMA_KEEP_ALIVE"] == "-1"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"kv_cache_type": "q8_0"}, "only with flash_attention=True"),
        ({"kv_cache_type": "q4_0", "flash_attention": False}, "only with flash_attention=True"),
        ({"models_dir": "srv/ollama"}, "absolute path"),
        ({"models_dir": "/srv"}, "system directory"),
        ({"models_dir": "/srv/a:b"}, "no colon"),
        ({"accelerator": "cpu", "gpu_count": 1}, "accelerator=nvidia"),
        ({"accelerator": "cpu", "spread": True}, "accelerator=nvidia"),
        ({"gpu_device_ids": ["first"]}, "match pattern"),
        ({"gpu_count": 1, "gpu_device_ids": ["0"]}, "not both"),
        ({"gpu_count": 0}, "greater than or equal to 1"),
        ({"keep_alive": timedelta(seconds=-1)}, "forever"),
        ({"origins": ["chat.example.org"]}, "match pattern"),
        ({"publish_address": "localhost"}, "IPv4"),
        ({"health_interval": timedelta(0)}, "one second or more"),
    ],
)
def test_wrong_settings_are_refused_with_a_reason(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        OllamaSettings(**values)


def test_compose_is_not_to_pull_the_image() -> None:
    """It is on the host before: loaded from its archive, or pulled with the site's login."""
    assert f'image: "{REFERENCE}"' in compose() and "pull_policy: never" in compose()
    mirror = {"mirrors": {"docker.io": "registry.example.org:5000"}}
    assert f'image: "registry.example.org:5000/{REFERENCE}"' in compose(images=mirror)


def test_archive_ids(archive: Path) -> None:
    assert imagearchive.read(archive).images == {REFERENCE: frozenset({"sha256:" + "a" * 64})}


def test_archive_ids_of_an_oci_layout(tmp_path: Path) -> None:
    name = {"io.containerd.image.name": f"docker.io/{REFERENCE}"}
    documents = {
        "index.json": {"manifests": [{"digest": "sha256:" + "b" * 64, "annotations": name}]},
        "manifest.json": [{"Config": "c" * 64 + ".json", "RepoTags": [REFERENCE], "Layers": []}],
    }
    path = archive_at(tmp_path / "oci.tar.gz", documents, "w:gz")
    assert imagearchive.read(path).ids(REFERENCE) == {"sha256:" + "b" * 64, "sha256:" + "c" * 64}


def test_archive_ids_of_skopeo(tmp_path: Path) -> None:
    documents = {
        "manifest.json": [{"Config": "c" * 64 + ".json", "RepoTags": [f"docker.io/{REFERENCE}"], "Layers": []}]
    }
    assert imagearchive.read(archive_at(tmp_path / "s.tar", documents)).ids(REFERENCE) == {"sha256:" + "c" * 64}


@pytest.mark.parametrize(
    ("documents", "words"),
    [
        ({"layer": 1}, "no manifest.json"),
        ({"manifest.json": {"not": "a list"}}, "not one of `docker save`"),
        ({"manifest.json": [{"RepoTags": ["x"]}]}, "not one of `docker save`"),
        ({"manifest.json": [{"Config": "a.json", "RepoTags": None}]}, "holds no tagged image"),
    ],
)
def test_other_tar_files_are_refused(tmp_path: Path, documents: dict[str, Any], words: str) -> None:
    path = archive_at(tmp_path / "other.tar", documents)
    with pytest.raises(imagearchive.ArchiveError, match=words):
        imagearchive.read(path).ids(REFERENCE)


def test_what_is_no_tar_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "image.tar"
    path.write_bytes(b"no archive" * 100)
    with pytest.raises(imagearchive.ArchiveError, match="docker save -o"):
        imagearchive.read(path)
    with pytest.raises(imagearchive.ArchiveError, match="is not a file"):
        imagearchive.read(tmp_path)


def test_replaced_archive_is_read_anew(archive: Path) -> None:
    assert imagearchive.read(archive).ids(REFERENCE) == {"sha256:" + "a" * 64}
    manifest = [{"Config": "d" * 64 + ".json", "RepoTags": [REFERENCE, "other:1"]}]
    archive_at(archive, {"manifest.json": manifest})
    assert imagearchive.read(archive).ids(REFERENCE) == {"sha256:" + "d" * 64}


@pytest.mark.parametrize(
    ("address", "local"),
    [
        ("0.0.0.0", "http://127.0.0.1:11434"),  # noqa: S104 - not bound here
        ("::", "http://[::1]:11434"),
        ("fd00::5", "http://[fd00::5]:11434"),
        ("10.0.0.0", "http://10.0.0.0:11434"),  # ends like the address of everywhere
    ],
)
def test_the_host_itself_asks_where_the_api_listens(address: str, local: str) -> None:
    assert OllamaSettings(publish_address=address).url == local
