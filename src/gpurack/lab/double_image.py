"""Image archives of doubles for test hosts: a Debian root with Python and some files, built without an engine."""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import re
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from gpurack.lab.rootfs import CACHE

DOUBLES = Path(__file__).resolve().parents[3] / "tests" / "doubles"
SUITE = "trixie"
EPOCH = 1735689600  # 2025-01-01: fixed times make the same recipe the same image
PYTHON = ("base-files", "python3-minimal", "libpython3.13-stdlib")
PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
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
class ImageFile:
    """A file or directory that is put into an image.

    Attributes:
        path: where it is in the image, absolute.
        data: its content; None for a directory or a link.
        mode: permissions.
        uid: owner and group.
        link: what a symbolic link points to; empty for anything else.
    """

    path: str
    data: bytes | None = None
    mode: int = 0o755
    uid: int = 0
    link: str = ""


@dataclass(frozen=True)
class DoubleImage:
    """An image to build.

    Attributes:
        repository: name without tag, as the image it stands in for has it.
        version: the tag.
        files: what is put into the Debian root.
        config: the image's configuration (``Entrypoint``, ``Env``, ...), without ``PATH`` and labels.
        packages: Debian packages of the root, with what they depend on.
        suite: Debian release they are of.
        without: regular expression of the root's files that are left out, beside :data:`UNNEEDED`.
    """

    repository: str
    version: str
    files: Sequence[ImageFile]
    config: Mapping[str, Any]
    packages: Sequence[str] = PYTHON
    suite: str = SUITE
    without: str = "(?!)"

    def archive(self) -> Path:
        """Return the image's archive, building it if it is not cached.

        Raises:
            RuntimeError: mmdebstrap is missing or failed; the message holds its last lines.
        """
        recipe = hashlib.sha256(repr(self).encode() + Path(__file__).read_bytes()).hexdigest()[:12]
        name = self.repository.rpartition("/")[2]
        target = CACHE / f"{name}-double-{self.version}-{recipe}.tar"
        CACHE.mkdir(parents=True, exist_ok=True)
        with (CACHE / f"{name}-double.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not target.exists():
                with TemporaryDirectory(dir=CACHE, prefix=f"{name}-double-") as folder:
                    self._build(Path(folder)).replace(target)
        return target

    def _build(self, folder: Path) -> Path:
        layer = folder / "layer.tar"
        _write_layer(_root(self.suite, self.packages), layer, self)
        return _write_archive(layer, folder / "archive.tar", self)


def _root(suite: str, packages: Sequence[str]) -> Path:
    """Return a tar file of a Debian root with these packages."""
    key = hashlib.sha256(" ".join((suite, *packages)).encode()).hexdigest()[:12]
    target = CACHE / f"double-root-{key}.tar"
    with (CACHE / f"double-root-{key}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            part = target.with_suffix(".part.tar")
            # A mirror's sid may be days old, and then no longer valid by its own word; its signature still is.
            options = ["--variant=extract", '--aptopt=Acquire::Check-Valid-Until "false"']
            command = ["mmdebstrap", *options, f"--include={','.join(packages)}", suite, str(part)]
            try:
                made = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"})
            except FileNotFoundError:
                raise RuntimeError("mmdebstrap is not installed: apt-get install mmdebstrap") from None
            if made.returncode:
                raise RuntimeError("mmdebstrap failed:\n" + "\n".join(made.stderr.splitlines()[-5:]))
            part.replace(target)
    return target


def _write_layer(root: Path, layer: Path, image: DoubleImage) -> None:
    left_out = re.compile(image.without)
    with tarfile.open(root) as source, tarfile.open(layer, "w") as out:
        for member in source:
            if any(member.name == path or member.name.startswith(path + "/") for path in UNNEEDED):
                continue
            if left_out.fullmatch(member.name):
                continue
            member.mtime = EPOCH
            out.addfile(member, source.extractfile(member) if member.isfile() else None)
        # /dev is left out above with its device nodes; the engine mounts its own there.
        for file in (ImageFile("/dev"), *image.files):
            member = tarfile.TarInfo(f".{file.path}")
            member.mode, member.mtime, member.uid, member.gid = file.mode, EPOCH, file.uid, file.uid
            member.type = tarfile.DIRTYPE if file.data is None else tarfile.REGTYPE
            if file.link:
                member.type, member.linkname = tarfile.SYMTYPE, file.link
            member.size = len(file.data or b"")
            out.addfile(member, io.BytesIO(file.data or b""))


def _write_archive(layer: Path, target: Path, image: DoubleImage) -> Path:
    """Write an OCI layout that is a ``docker save`` archive too, as Docker 25 and later write it."""
    name = f"{image.repository}:{image.version}"
    diff_id = _digest(layer.read_bytes())
    started_with: dict[str, Any] = {
        **image.config,
        "Env": [PATH, *image.config.get("Env", [])],
        "Labels": {"org.gpurack.double": "true"},
    }
    config = _encode(
        {
            "architecture": "amd64",
            "os": "linux",
            "created": "2025-01-01T00:00:00Z",
            "config": started_with,
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
                        "org.opencontainers.image.ref.name": image.version,
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
