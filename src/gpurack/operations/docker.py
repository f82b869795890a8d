"""Operations on the Docker daemon and its images."""

from __future__ import annotations

import base64
import json
import shlex
from collections.abc import Generator
from io import StringIO
from pathlib import Path
from typing import Any

from pyinfra import host
from pyinfra.api import FileUploadCommand, OperationError, operation
from pyinfra.api.command import PyinfraCommand
from pyinfra.facts.files import Sha256File
from pyinfra.operations import files

from gpurack import imagearchive
from gpurack.catalogue import CatalogueError
from gpurack.diff import log_diff
from gpurack.facts.docker import ImageId, Networks
from gpurack.facts.textfile import TextFile
from gpurack.images import Credential, ImageSource
from gpurack.rendering import render

Commands = Generator[str | PyinfraCommand, None, None]

DAEMON_JSON = "/etc/docker/daemon.json"
DEFAULT_DATA_ROOT = "/var/lib/docker"
NETWORK = "gpurack"
"""The network on which the services of a host find each other."""
UPLOADS = "/var/lib/gpurack/upload"
LOGINS = "/etc/gpurack/registry"
"""One client configuration an image: root's own logins, and what else is in his config.json, stay as they are."""
DOCKER_HUB = "https://index.docker.io/v1/"
"""The name under which Docker's client keeps a login at Docker Hub."""

# dockerd 20.10 has no --validate. It reads its file before it looks at the log level, so that an impossible level
# stops it after the file was accepted and before anything is started.
VALIDATE = """\
if dockerd --help | grep -q -e '--validate'; then dockerd --validate --config-file {new} >{new}.log 2>&1
else dockerd --config-file {new} --log-level validate-only >{new}.log 2>&1
grep -q 'unable to parse logging level' {new}.log; fi \
|| {{ echo 'dockerd does not accept the new daemon.json; the old one stays in force:' >&2
cat {new}.log >&2; rm -f {new} {new}.log; exit 1; }}
rm -f {new}.log"""

# One command, so that a lost connection cannot leave a new file beside a daemon that runs with the old one.
SWITCH = """\
{stop}if test -e {dest}; then cp -p {dest} {dest}.before; else rm -f {dest}.before; fi
if mv {new} {dest} && systemctl reset-failed docker.service && systemctl restart docker.service
then rm -f {dest}.before; {again}exit 0; fi
echo 'dockerd did not start with the new daemon.json; the old one is put back. Its last words:' >&2
journalctl --unit docker.service --no-pager --lines 15 --output cat >&2
if test -e {dest}.before; then mv {dest}.before {dest}; else rm -f {dest}; fi
systemctl reset-failed docker.service; systemctl restart docker.service
{start}exit 1"""


@operation()
def daemon_config(src: str, **data: Any) -> Commands:
    """Put a checked ``/etc/docker/daemon.json`` in force.

    The new file is tried by dockerd itself before it takes the place of the old one; if the daemon does not come up
    with it, the old one is put back and the operation fails. When the data root moves, running containers are stopped
    first: with live restore they would go on running, out of reach of the daemon. When the cgroup driver changes, they
    are stopped and started again: until then they would live in the old one's cgroups.

    + src: Jinja2 template of the file
    + data: variables of the template
    """
    wanted = render(src, **data)
    current = host.get_fact(TextFile, path=DAEMON_JSON)
    if current and (current.content, current.owner, current.mode) == (wanted, "root:root", "644"):
        host.noop(f"{DAEMON_JSON} is in force")
        return
    if current and current.content == wanted:
        yield f"chown root:root {DAEMON_JSON} && chmod 644 {DAEMON_JSON}"
        return
    log_diff(DAEMON_JSON, current.content if current else "", wanted)
    new = f"{DAEMON_JSON}.new"
    yield from files.put._inner(src=StringIO(wanted), dest=new, user="root", group="root", mode="644")
    yield VALIDATE.format(new=new)
    before = current.content if current else ""
    moved = data_root_of(before) != data_root_of(wanted)
    other_cgroups = not moved and exec_options_of(before) != exec_options_of(wanted)
    start = 'test -z "$running" || docker start $running'
    yield SWITCH.format(
        new=new,
        dest=DAEMON_JSON,
        stop='running=$(docker ps --quiet); test -z "$running" || docker stop $running\n'
        if moved or other_cgroups
        else "",
        again=f"{start} || exit 1; " if other_cgroups else "",
        start=f"{start}\n" if moved or other_cgroups else "",
    )


def data_root_of(daemon_json: str) -> str:
    """Return where a daemon with this configuration keeps its data; the default where the file says nothing."""
    try:
        return str(json.loads(daemon_json).get("data-root", DEFAULT_DATA_ROOT))
    except (ValueError, AttributeError):
        return DEFAULT_DATA_ROOT


def exec_options_of(daemon_json: str) -> list[str]:
    """Return the options of the runtime in a configuration, the cgroup driver among them."""
    try:
        return list(json.loads(daemon_json).get("exec-opts", []))
    except (ValueError, AttributeError, TypeError):
        return []


@operation()
def repository_key(url: str, dest: str, sha256: str) -> Commands:
    """Fetch a repository's signing key, and put it in place only if it is the expected file.

    + url: where the key is
    + dest: path of the key on the host
    + sha256: checksum of the file, in hexadecimal
    """
    if host.get_fact(Sha256File, path=dest) == sha256:
        host.noop(f"{dest} is the expected key")
        return
    new, target, source = shlex.quote(f"{dest}.new"), shlex.quote(dest), shlex.quote(url)
    yield (
        f"install -d -m 755 $(dirname {target}) && curl -fsSL --max-time 60 -o {new} {source} || exit 1\n"
        f"echo '{sha256}  '{new} | sha256sum --check --quiet && chmod 644 {new} && mv {new} {target} "
        f"|| {{ echo 'the key at '{source}' is not the pinned one; compare its fingerprint with the publisher'\"'\"'s "
        f"and set repository_key_sha256' >&2; rm -f {new}; exit 1; }}"
    )


@operation()
def network(network: str = NETWORK) -> Commands:
    """Make a bridge network, over which services of several Compose projects reach each other by name.

    + network: its name
    """
    if network in host.get_fact(Networks):
        host.noop(f"network {network} is there")
        return
    yield f"docker network create --driver bridge --label org.gpurack.managed=true {shlex.quote(network)}"


def image(images: ImageSource, name: str) -> None:
    """Declare what brings an image of the catalogue to the host: its archive, or a pull with the site's login.

    A Compose service that runs it says ``image: <images.reference(name)>`` and ``pull_policy: never``.

    Args:
        images: where the site gets its images from.
        name: of the image in ``images.toml``.

    Raises:
        OperationError: the catalogue or the archive cannot be used.
    """
    try:
        reference, archive, credential = images.reference(name), images.archive(name), images.credential(name)
    except CatalogueError as error:
        raise OperationError(str(error)) from None
    if archive:
        image_from_archive(
            name=f"Load image {name} from its archive",
            reference=reference,
            archive=archive,
        )
    folder = f"{LOGINS}/{name}"
    if credential:
        files.directory(
            name=f"Keep the login for image {name}",
            path=folder,
            user="root",
            group="root",
            mode="700",
        )
        files.put(
            name=f"Log in for image {name}",
            src=StringIO(login_file(images.registry(name), credential)),
            dest=f"{folder}/config.json",
            user="root",
            group="root",
            mode="600",
        )
    else:
        files.directory(
            name=f"Keep no login for image {name}",
            path=folder,
            present=False,
        )
    if not archive:
        image_from_registry(
            name=f"Pull image {name}",
            reference=reference,
            config=folder if credential else None,
        )


def login_file(registry: str, credential: Credential) -> str:
    """Return a config.json of Docker's client with one login, as `docker login` writes it without a helper."""
    server = DOCKER_HUB if registry == "docker.io" else registry
    pair = f"{credential.username}:{credential.password.get_secret_value()}"
    return json.dumps({"auths": {server: {"auth": base64.b64encode(pair.encode()).decode()}}}) + "\n"


@operation()
def image_from_registry(reference: str, config: str | None = None) -> Commands:
    """Pull an image, unless the host has it; a reference with a digest is had only as exactly that image.

    + reference: name with tag, and with the digest where it is known
    + config: directory of a client configuration with the login; none: no login
    """
    if host.get_fact(ImageId, reference=reference):
        host.noop(f"image {reference} is on the host")
        return
    name = shlex.quote(reference)
    option = f" --config {shlex.quote(config)}" if config else ""
    yield (
        f"docker{option} pull --quiet {name} >/dev/null && exit 0\n"
        f"echo 'image '{name}' cannot be pulled; images.mirrors, images.credentials or images.archives in the settings "
        "say where images come from' >&2; exit 1"
    )


@operation()
def image_from_archive(reference: str, archive: Path) -> Commands:
    """Load an image from an archive on the control machine, unless the host has just that image.

    The upload goes to a directory only the login user and root can write, not to /tmp: that is often in memory, and a
    name there can be taken by others.

    + reference: name and tag of the image, as in the archive
    + archive: path of the archive on the control machine
    """
    try:
        ids = imagearchive.read(archive).ids(reference)
    except imagearchive.ArchiveError as error:
        raise OperationError(str(error)) from None
    if host.get_fact(ImageId, reference=reference) in ids:
        host.noop(f"image {reference} is the one in {archive.name}")
        return
    digest = min(ids).removeprefix("sha256:")[:16]
    remote, name = f"{UPLOADS}/image-{digest}.tar", shlex.quote(reference)
    yield f'install -d -m 755 {Path(UPLOADS).parent} && install -d -m 700 -o "${{SUDO_USER:-root}}" {UPLOADS}'
    yield FileUploadCommand(str(archive), remote, _sudo=False)
    yield (
        f"docker load --quiet --input {remote}; status=$?; rm -f {remote}; test $status = 0 || exit $status\n"
        f"id=$(docker image inspect --format '{{{{.Id}}}}' {name}) || exit 1\n"
        f"case $id in {'|'.join(sorted(ids))}) ;; *) "
        f'echo "{reference} is $id after loading, expected {" or ".join(sorted(ids))}" >&2; exit 1;; esac'
    )
