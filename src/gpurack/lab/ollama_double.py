"""Image archives of the Ollama double for test hosts, built without a container engine: without models, and with
llama.cpp's server, which pulls, makes and runs them for real.

See ``tests/doubles/ollama/README.md`` for what the double answers and what it does not prove.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import re
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

REPOSITORY = "ollama/ollama"
VERSION = "0.32.15"
"""The Ollama release whose name and API version the double bears; the ollama role's default."""

MODEL = "gpurack-double"
"""The one model name the double answers to."""

CACHE = Path("/var/cache/gpurack-lab")
SOURCES = Path(__file__).resolve().parents[3] / "tests" / "doubles" / "ollama"
PROGRAM = "./usr/lib/ollama-double"
EPOCH = 1735689600  # 2025-01-01: fixed times make the same recipe the same image
# What a running server never reads; leaving it out halves the image.
UNNEEDED = (
    "./usr/share/doc",
    "./usr/share/man",
    "./usr/share/locale",
    "./usr/share/info",
    "./usr/share/lintian",
    "./usr/share/bash-completion",
    "./usr/share/perl5",
    "./usr/lib/x86_64-linux-gnu/perl-base",
    "./usr/lib/x86_64-linux-gnu/gconv",
    "./var/cache",
    "./var/lib/apt",
    "./var/lib/dpkg",
    "./dev",
)


@dataclass(frozen=True)
class Variant:
    """What an image is made of.

    Attributes:
        suite: Debian release.
        packages: packages of it, with what they depend on.
        without: regular expression of files that are left out, beside :data:`UNNEEDED`.
        environment: of the server.
    """

    suite: str
    packages: tuple[str, ...]
    without: str
    environment: tuple[str, ...] = ()


LIGHT = Variant("trixie", ("base-files", "python3-minimal", "libpython3.13-stdlib"), "(?!)")
ENGINE = Variant(
    "sid",  # the one suite with llama.cpp
    ("base-files", "python3-minimal", "libpython3-stdlib", "llama.cpp"),
    # Programs nobody starts, and the engine's code for other processors than the two commonest kinds.
    r"\./usr/bin/llama-(bench|cli|completion)|\./usr/libexec/.*|.*/libggml-cpu-(?!x64|haswell).*|.*/pydoc_data/.*",
    # Waits between two attempts of a download are a twentieth of Ollama's.
    ("OLLAMA_DOUBLE_ENGINE=1", "OLLAMA_DOUBLE_PATIENCE=0.05"),
)


def archive(version: str = VERSION, *, engine: bool = False) -> Path:
    """Return the archive of the double tagged ``ollama/ollama:<version>``, building it if it is not cached.

    Args:
        version: the tag, and the version ``/api/version`` gives.
        engine: with llama.cpp: models are pulled, made and run. Without, it answers for :data:`MODEL` alone.

    Raises:
        RuntimeError: mmdebstrap is missing or failed; the message holds its last lines.
    """
    variant = ENGINE if engine else LIGHT
    recipe = hashlib.sha256(Path(__file__).read_bytes() + version.encode())
    for source in _sources():
        recipe.update(source.read_bytes())
    CACHE.mkdir(parents=True, exist_ok=True)
    kind = "ollama-engine-double" if engine else "ollama-double"
    target = CACHE / f"{kind}-{version}-{recipe.hexdigest()[:12]}.tar"
    with (CACHE / "ollama-double.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            with TemporaryDirectory(dir=CACHE, prefix="ollama-double-") as folder:
                built = _build(Path(folder), version, variant)
                built.replace(target)
    return target


def _sources() -> list[Path]:
    return sorted(SOURCES.glob("*.py"))


def _build(folder: Path, version: str, variant: Variant) -> Path:
    root = folder / "root.tar"
    # A mirror's sid may be days old, and then no longer valid by its own word; its signature still is.
    options = [
        "--variant=extract",
        '--aptopt=Acquire::Check-Valid-Until "false"',
        f"--include={','.join(variant.packages)}",
    ]
    command = ["mmdebstrap", *options, variant.suite, str(root)]
    try:
        made = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"})
    except FileNotFoundError:
        raise RuntimeError("mmdebstrap is not installed: apt-get install mmdebstrap") from None
    if made.returncode:
        raise RuntimeError("mmdebstrap failed:\n" + "\n".join(made.stderr.splitlines()[-5:]))
    layer = folder / "layer.tar"
    _write_layer(root, layer, variant)
    return _write_archive(layer, folder / "archive.tar", version, variant)


def _write_layer(root: Path, layer: Path, variant: Variant) -> None:
    left_out = re.compile(variant.without)
    with tarfile.open(root) as source, tarfile.open(layer, "w") as out:
        for member in source:
            if any(member.name == path or member.name.startswith(path + "/") for path in UNNEEDED):
                continue
            if left_out.fullmatch(member.name):
                continue
            member.mtime = EPOCH
            out.addfile(member, source.extractfile(member) if member.isfile() else None)
        # Left out above with its device nodes; the engine mounts its own there.
        for path in ("./dev", PROGRAM):
            folder = tarfile.TarInfo(path)
            folder.type, folder.mode, folder.mtime = tarfile.DIRTYPE, 0o755, EPOCH
            out.addfile(folder)
        for file in _sources():
            program = tarfile.TarInfo(f"{PROGRAM}/{file.name}")
            program.mode, program.mtime, program.size = 0o755, EPOCH, file.stat().st_size
            out.addfile(program, io.BytesIO(file.read_bytes()))
        command = tarfile.TarInfo("./usr/bin/ollama")
        command.type, command.mtime, command.linkname = tarfile.SYMTYPE, EPOCH, f"{PROGRAM.removeprefix('.')}/ollama.py"
        out.addfile(command)


def _write_archive(layer: Path, target: Path, version: str, variant: Variant) -> Path:
    """Write an OCI layout that is a ``docker save`` archive too, as Docker 25 and later write it."""
    name = f"{REPOSITORY}:{version}"
    diff_id = _digest(layer.read_bytes())
    config = _encode(
        {
            "architecture": "amd64",
            "os": "linux",
            "created": "2025-01-01T00:00:00Z",
            "config": {
                "Entrypoint": ["/bin/ollama"],
                "Cmd": ["serve"],
                "Env": [
                    "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                    "OLLAMA_HOST=0.0.0.0:11434",
                    f"OLLAMA_DOUBLE_VERSION={version}",
                    *variant.environment,
                ],
                "ExposedPorts": {"11434/tcp": {}},
                "Labels": {"org.gpurack.double": "true"},
            },
            "rootfs": {"type": "layers", "diff_ids": [diff_id]},
            "history": [{"created": "2025-01-01T00:00:00Z", "created_by": "gpurack test double"}],
        }
    )
    oci = "application/vnd.oci.image"
    manifest = _encode(
        {
            "schemaVersion": 2,
            "mediaType": f"{oci}.manifest.v1+json",
            "config": {"mediaType": f"{oci}.config.v1+json", "digest": _digest(config), "size": len(config)},
            "layers": [{"mediaType": f"{oci}.layer.v1.tar", "digest": diff_id, "size": layer.stat().st_size}],
        }
    )
    index = _encode(
        {
            "schemaVersion": 2,
            "mediaType": f"{oci}.index.v1+json",
            "manifests": [
                {
                    "mediaType": f"{oci}.manifest.v1+json",
                    "digest": _digest(manifest),
                    "size": len(manifest),
                    "annotations": {
                        "io.containerd.image.name": f"docker.io/{name}",
                        "org.opencontainers.image.ref.name": version,
                    },
                }
            ],
        }
    )
    saved = _encode([{"Config": _blob(config), "RepoTags": [name], "Layers": [_blob_name(diff_id)]}])
    with tarfile.open(target, "w") as out:
        # The small documents first: a reader finds them without passing over the layer.
        for path, data in (
            ("oci-layout", b'{"imageLayoutVersion":"1.0.0"}'),
            ("manifest.json", saved),
            ("index.json", index),
            (_blob(config), config),
            (_blob(manifest), manifest),
        ):
            _add(out, path, data)
        _add(out, _blob_name(diff_id), layer.read_bytes())
    return target


def _add(out: tarfile.TarFile, path: str, data: bytes) -> None:
    member = tarfile.TarInfo(path)
    member.size, member.mode, member.mtime = len(data), 0o644, EPOCH
    out.addfile(member, io.BytesIO(data))


def _encode(document: object) -> bytes:
    return json.dumps(document, separators=(",", ":"), sort_keys=True).encode()


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _blob(data: bytes) -> str:
    return _blob_name(_digest(data))


def _blob_name(digest: str) -> str:
    return "blobs/sha256/" + digest.removeprefix("sha256:")
