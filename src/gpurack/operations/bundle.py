"""A bundle's package repository on a host: the host's one source of packages, needing no route anywhere."""

from __future__ import annotations

import shlex
from collections.abc import Generator, Sequence
from pathlib import Path

from pyinfra import host
from pyinfra.api import FileUploadCommand, OperationError, operation
from pyinfra.api.command import PyinfraCommand
from pyinfra.facts.files import Sha256File

from gpurack.bundle import manifest
from gpurack.bundle import models as bundled
from gpurack.bundle.manifest import KEY, BundleError
from gpurack.facts.bundle import FileSizes
from gpurack.facts.packages import UPDATE_STAMP
from gpurack.ollama.names import ModelName
from gpurack.operations.uploads import UPLOADS

ROOT = "/var/lib/gpurack/bundle"
"""Where the repository is on a host: ``apt`` with its packages, and the key it is signed with."""

Commands = Generator[str | PyinfraCommand, None, None]


@operation()
def repository(bundle: Path, codename: str) -> Commands:
    """Bring the packages of a release to the host; only those it does not have are uploaded.

    The signed index goes last: a cut upload leaves the old one, or one that apt finds incomplete. What an index no
    longer names is removed. apt checks every package against the index, so sizes are enough to compare.

    + bundle: directory of the bundle on the control machine
    + codename: release of the host
    """
    try:
        listed = manifest.read(bundle)
    except BundleError as error:
        raise OperationError(str(error)) from None
    if codename not in listed.releases:
        raise OperationError(
            f"bundle {bundle} has packages for {', '.join(listed.releases)}, not for {codename}: make it with --release"
        )
    inside = f"apt/{codename}/"
    wanted = {path.removeprefix(inside): entry for path, entry in listed.files.items() if path.startswith(inside)}
    key_sha256 = manifest.sha256(bundle / KEY)
    current = host.get_fact(Sha256File, path=f"{ROOT}/apt/InRelease") == wanted["InRelease"].sha256
    found = host.get_fact(FileSizes, path=f"{ROOT}/apt")
    sizes = {path: entry.size for path, entry in wanted.items()}
    if current and found == sizes and host.get_fact(Sha256File, path=f"{ROOT}/{KEY}") == key_sha256:
        host.noop(f"the packages of {bundle.name} are on the host")
        return
    yield (
        f"install -d -m 755 {Path(UPLOADS).parent} {ROOT} {ROOT}/apt {ROOT}/apt/pool && "
        f'install -d -m 700 -o "${{SUDO_USER:-root}}" {UPLOADS}'
    )
    missing = [path for path in sizes if path.startswith("pool/") and found.get(path) != sizes[path]]
    last = ["Packages", "InRelease"]
    for number, path in enumerate([*missing, *last]):
        upload, target = f"{UPLOADS}/bundle-{number}", f"{ROOT}/apt/{path}"
        yield FileUploadCommand(str(bundle / inside / path), upload, _sudo=False)
        yield _into_place(upload, target)
    yield FileUploadCommand(str(bundle / KEY), f"{UPLOADS}/bundle-key", _sudo=False)
    yield _into_place(f"{UPLOADS}/bundle-key", f"{ROOT}/{KEY}")
    yield f"rm -f {UPDATE_STAMP}"  # what apt knows of the old index is stale
    if stale := [path for path in found if path not in sizes]:
        yield f"cd {ROOT}/apt && rm -f -- {shlex.join(stale)}"


@operation()
def models(bundle: Path, names: Sequence[ModelName], directory: str) -> Commands:
    """Bring models from a bundle into Ollama's store on the host; only blobs it does not have are uploaded.

    A model's manifest goes last, so that Ollama knows it only once it is whole. Where another model is made of it under
    its own name, it is the one kept for that which is compared.

    + bundle: directory of the bundle on the control machine
    + names: of the models
    + directory: models_dir of the server on the host
    """
    store = f"{directory}/models"
    found = host.get_fact(FileSizes, path=store)
    uploaded: set[str] = set()
    for name in names:
        try:
            path, blobs = bundled.in_bundle(bundle, name)
        except BundleError as error:
            raise OperationError(str(error)) from None
        own, kept = f"manifests/{name.path}", f"manifests/{name.base.path}"
        target = kept if kept in found else own
        known = host.get_fact(Sha256File, path=f"{store}/{target}") if target in found else None
        missing = [
            digest.removeprefix("sha256:")
            for digest, size in blobs.items()
            if found.get(f"blobs/{digest.replace(':', '-')}") != size and digest not in uploaded
        ]
        if known == manifest.sha256(bundle / path) and not missing:
            continue
        yield (
            f'install -d -m 755 {Path(UPLOADS).parent} && install -d -m 700 -o "${{SUDO_USER:-root}}" {UPLOADS} && '
            f"install -d -m 755 {shlex.quote(f'{store}/blobs')} $(dirname {shlex.quote(f'{store}/{target}')})"
        )
        for digest in missing:
            upload, blob = f"{UPLOADS}/blob-{digest}", shlex.quote(f"{store}/blobs/sha256-{digest}")
            yield FileUploadCommand(str(bundle / bundled.FOLDER / f"blobs/sha256-{digest}"), upload, _sudo=False)
            yield (
                f"echo '{digest}  {upload}' | sha256sum --check --quiet && chown root:root {upload} && "
                f"chmod 644 {upload} && mv {upload} {blob}.new && mv {blob}.new {blob} || {{ "
                f"rm -f {upload} {blob}.new; "
                f"echo '{name}: sha256-{digest} did not arrive as the bundle has it' >&2; exit 1; }}"
            )
            uploaded.add(f"sha256:{digest}")
        yield FileUploadCommand(str(bundle / path), f"{UPLOADS}/model-manifest", _sudo=False)
        yield _into_place(f"{UPLOADS}/model-manifest", f"{store}/{target}")


def _into_place(upload: str, target: str) -> str:
    return f"chown root:root {upload} && chmod 644 {upload} && mv {upload} {shlex.quote(target)}"
