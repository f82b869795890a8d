"""Making a bundle: what an inventory's enabled roles need is gathered, then indexed, listed and signed.

Every step looks at what is there first, so that a creation that was cut off goes on where it was. The key is made at
the very end: its secret half is on disk for seconds, and an unfinished bundle has no manifest that anybody could trust.
"""

from __future__ import annotations

import json
import shutil
import sys
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from pyinfra.api.inventory import Inventory

from gpurack.bundle import models, packages, signing
from gpurack.bundle.manifest import (
    KEY,
    MANIFEST,
    SIGNATURE,
    WORK,
    BundledImage,
    BundleError,
    Manifest,
    entries,
    sha256,
)
from gpurack.bundle.packages import RELEASES, Wanted
from gpurack.bundle.settings import BundleSettings
from gpurack.images import ImageSource
from gpurack.ollama.pulled import PulledModel
from gpurack.secrets import SecretError
from gpurack.settings import enabled_roles, layers_of, merge, settings_of

Say = Callable[[str], None]


@dataclass
class Need:
    """What the hosts of an inventory need.

    Attributes:
        packages: by release, names of Debian packages.
        images: by name in ``images.toml``, where each comes from.
        models: by key of the name, models from registries.
        mirrors: Debian mirror and mirror of security updates; None for the distribution's own.
    """

    packages: dict[str, set[str]] = field(default_factory=dict)
    images: dict[str, ImageSource] = field(default_factory=dict)
    models: dict[str, PulledModel] = field(default_factory=dict)
    mirrors: tuple[str | None, str | None] = (None, None)


def need_of(inventory: Inventory, releases: Sequence[str]) -> Need:
    """Return what the enabled roles of all hosts need, on each of some releases.

    Raises:
        BundleError: two hosts want one image as different things.
    """
    need = Need({release: set() for release in releases})
    for host in inventory:
        base = settings_of(host, "base")
        need.mirrors = (base.mirror or need.mirrors[0], base.security_mirror or need.mirrors[1])
        extra = BundleSettings.model_validate(
            {key: value for key, value in merge(layers_of(host), "bundle").values.items() if key == "packages"}
        )
        for release, names in need.packages.items():
            names.update(extra.packages)
            for _, settings in enabled_roles(host):
                names.update(settings.packages_for("debian", release))
        for role, settings in enabled_roles(host):
            for model in settings.models_pulled:
                if need.models.setdefault(model.name.key, model).digest not in (None, model.digest):
                    raise BundleError(f"model {model.name} has another digest on {host.name} than on a host before it")
            source = getattr(settings, "images", None)
            if not isinstance(source, ImageSource):
                continue
            for name in settings.image_names:
                known = need.images.setdefault(name, source)
                if known.image(name) != source.image(name):
                    raise BundleError(
                        f"image {name} is {known.reference(name)} on one host and {source.reference(name)} on "
                        f"{host.name} (role {role}); a bundle has one of each: make one for each, with --limit"
                    )
    return need


def create(
    inventory: Inventory,
    name: str,
    bundle: Path,
    *,
    releases: Sequence[str] = RELEASES,
    cache: Path | None = None,
    wheels: bool = True,
    say: Say = print,
) -> str:
    """Make a bundle in a directory, or go on making it; return the fingerprint of the key it is signed with.

    Args:
        inventory: an inventory without problems.
        name: of the inventory, for the manifest.
        bundle: the directory.
        releases: codenames of the hosts' releases.
        cache: folder in which downloaded packages are kept for the next bundle; by default they are the bundle's own.
        wheels: take gpurack itself along, and what it depends on.
        say: called with each step's result.

    Raises:
        BundleError: something cannot be had, or a tool is missing.
    """
    work = bundle / WORK
    work.mkdir(parents=True, exist_ok=True)
    for name_ in (MANIFEST, SIGNATURE, KEY):  # a bundle in the making is none
        (bundle / name_).unlink(missing_ok=True)
    need = need_of(inventory, releases)
    for release in releases:
        wanted = Wanted(release, tuple(sorted(need.packages[release])))
        if need.mirrors[0]:
            wanted = Wanted(release, wanted.names, need.mirrors[0], need.mirrors[1] or wanted.security_mirror)
        kept = (cache or work) / f"apt-{release}"
        if cache is None:
            packages.seed(bundle / "apt" / release, kept)
        files = packages.fetch(wanted, work / f"root-{release}", kept)
        packages.gather(files, bundle / "apt" / release, link=cache is None)
        say(f"packages for {release}: {len(files)} files, {_mib(files)} MiB")
    images = {}
    for image in sorted(need.images):
        images[image] = _image(image, need.images[image], bundle, work)
        say(f"image {image}: {images[image].reference}, {_mib([bundle / images[image].path])} MiB")
    _drop_others(bundle / "images", {bundle / image.path for image in images.values()})
    for model in need.models.values():
        size = models.fetch(model, bundle / models.FOLDER, work / "blobs")
        say(f"model {model.name}: {size / 1024 / 1024:.0f} MiB")
    models.drop_others(bundle / models.FOLDER, list(need.models.values()))
    if wheels:
        say(f"wheels: {_wheels(work / 'wheels', bundle / 'wheels')} files")
    with signing.signer() as key:
        for release in releases:
            packages.index(bundle / "apt" / release, release, key)
        key.export(bundle / KEY)
        listed = entries(bundle)
        manifest = Manifest(
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            gpurack=version("gpurack"),
            inventory=name,
            releases=tuple(releases),
            images=images,
            models=tuple(sorted(str(model.name) for model in need.models.values())),
            files=listed,
        )
        new = bundle / WORK / MANIFEST
        new.write_text(manifest.text())
        key.detached(new, bundle / SIGNATURE)
        new.rename(bundle / MANIFEST)
        fingerprint = key.fingerprint
    shutil.rmtree(work)
    say(f"{len(listed)} files, {sum(entry.size for entry in listed.values()) / 1024 / 1024:.0f} MiB")
    return fingerprint


def _mib(files: Sequence[Path]) -> str:
    return f"{sum(file.stat().st_size for file in files) / 1024 / 1024:.0f}"


def _drop_others(folder: Path, wanted: set[Path]) -> None:
    for file in folder.glob("*"):
        if file not in wanted:
            file.unlink()


def _image(name: str, source: ImageSource, bundle: Path, work: Path) -> BundledImage:
    """Bring an image's archive into the bundle: the site's own archive, or the registry's image by skopeo."""
    image = source.image(name)
    reference = f"{image.name}:{image.tag}"
    path = f"images/{name}.tar"
    target, stamp = bundle / path, work / f"image-{name}.json"
    archive = source.archive(name)
    state = {
        "reference": source.reference(name),
        "archive": str(archive),
        "size": archive.stat().st_size if archive else 0,
    }
    if archive:
        state["sha256"] = sha256(archive)
    if not (target.exists() and stamp.exists() and json.loads(stamp.read_text()) == state):
        target.unlink(missing_ok=True)
        if archive:
            packages.put(archive, target, link=False)
        else:
            _pull(name, source, reference, target, work)
        stamp.write_text(json.dumps(state))
    return BundledImage(reference=reference, path=path)


def _pull(name: str, source: ImageSource, reference: str, target: Path, work: Path) -> None:
    new, auth = work / f"{target.name}.new", work / f"{target.name}.auth"  # the work folder is no part of a bundle
    target.parent.mkdir(parents=True, exist_ok=True)
    new.unlink(missing_ok=True)
    # skopeo takes a tag or a digest, not both; a digest is the stronger word.
    wanted = source.reference(name)
    if "@" in wanted:
        head, digest = wanted.split("@")
        wanted = f"{head.rpartition(':')[0]}@{digest}"
    command = ["skopeo", "copy", "--quiet", "--override-arch", "amd64", "--override-os", "linux", "--retry-times", "3"]
    if source.registry(name).partition(":")[0] in ("localhost", "127.0.0.1"):
        command.append("--src-tls-verify=false")
    credential = source.credential(name)
    try:
        if credential:
            from gpurack.operations.docker import login_file

            auth.touch(mode=0o600)
            auth.write_text(login_file(source.registry(name), credential.username, credential.password.reveal()))
            command += ["--src-authfile", str(auth)]
        signing.run([*command, f"docker://{wanted}", f"docker-archive:{new}:{reference}"], "skopeo")
    except SecretError as error:
        raise BundleError(f"images.credentials: {error}") from None
    finally:
        auth.unlink(missing_ok=True)
    new.rename(target)


def _wheels(folder: Path, target: Path) -> int:
    """Put wheels of gpurack and of all it depends on, as uv.lock has them, in place; return how many there are."""
    folder.mkdir(parents=True, exist_ok=True)
    uv = str(Path(sys.executable).with_name("uv"))
    python = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    export = ["export", "--frozen", "--no-dev", "--no-emit-project", "--quiet"]
    (folder / "requirements.txt").write_bytes(signing.run([uv, *export], "uv"))
    command = [*python, "download", "--only-binary", ":all:", "--dest", str(folder)]
    signing.run([*command, "--requirement", str(folder / "requirements.txt")], "python3-pip")
    signing.run([uv, "build", "--wheel", "--quiet", "--out-dir", str(folder), "."], "uv")
    (folder / ".gitignore").unlink(missing_ok=True)
    shutil.rmtree(target, ignore_errors=True)
    folder.rename(target)
    return len(list(target.glob("*.whl")))


def pack(bundle: Path, archive: Path) -> None:
    """Write a finished bundle as one tar file, the manifest first.

    Raises:
        BundleError: it is not finished.
    """
    if not (bundle / MANIFEST).is_file():
        raise BundleError(f"{bundle} is not finished")
    new = archive.with_name(f".{archive.name}.new")
    first = [MANIFEST, SIGNATURE, KEY]
    rest = [path.relative_to(bundle).as_posix() for path in sorted(bundle.rglob("*")) if path.is_file()]
    with tarfile.open(new, "w") as tar:
        for path in [*first, *(path for path in rest if path not in first)]:
            tar.add(bundle / path, arcname=path, recursive=False)
    new.rename(archive)
