"""Root file systems of test hosts: bare Debian, built once and kept.

What is in them is what a hosting provider's image holds: an administrator with sudo, an SSH server, and nothing that
gpurack's roles install. Packages that roles install lie in apt's cache, so that a test does not download them again.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CACHE = Path(os.environ.get("GPURACK_LAB_CACHE", "/var/cache/gpurack-lab"))
MIRROR = os.environ.get("GPURACK_LAB_MIRROR", "http://deb.debian.org/debian")
SECURITY_MIRROR = os.environ.get("GPURACK_LAB_SECURITY_MIRROR", "http://deb.debian.org/debian-security")

RELEASES = {"bookworm": "12", "trixie": "13"}
"""Debian releases of test hosts, with their numbers."""

COMPONENTS = "main contrib non-free non-free-firmware"

BARE = (
    "systemd",
    "systemd-sysv",
    "dbus",
    "udev",
    "openssh-server",
    "sudo",
    "nftables",
    "iproute2",
    "iputils-ping",
    "netbase",
    "cron",
    "ca-certificates",
    "systemd-timesyncd",
)
"""What a provider's image holds beyond a minimal system."""

CACHED = (
    *("chrony", "unattended-upgrades", "curl", "acl", "rsync", "jq", "gnupg", "logrotate", "lsof", "psmisc"),
    *("docker.io", "iptables", "apparmor", "tini", "git", "xz-utils"),
)
"""Packages that roles install, kept in apt's cache of every host."""

CACHED_OF_RELEASE = {"bookworm": (), "trixie": ("docker-cli", "docker-compose", "docker-buildx")}

USER = "admin"
"""Who one logs in as; may become root without a password."""

_SETUP = """\
set -eu
root=$1
printf '#!/bin/sh\\nexit 101\\n' > "$root/usr/sbin/policy-rc.d"
chmod 755 "$root/usr/sbin/policy-rc.d"
chroot "$root" useradd --create-home --shell /bin/bash --groups sudo ADMIN
echo 'ADMIN ALL=(ALL) NOPASSWD: ALL' > "$root/etc/sudoers.d/90-lab"
chmod 440 "$root/etc/sudoers.d/90-lab"
rm -f "$root/etc/apt/sources.list" "$root"/etc/apt/sources.list.d/*
cp "$2/debian.sources" "$root/etc/apt/sources.list.d/debian.sources"
cp "$2/resolv.conf" "$root/etc/resolv.conf"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount --make-rslave "$root/dev"
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8
chroot "$root" apt-get -q update
chroot "$root" apt-get -qy --download-only --no-install-recommends install CACHED
umount "$root/proc"
umount -l "$root/dev"
rm -f "$root/usr/sbin/policy-rc.d" "$root"/etc/ssh/ssh_host_* "$root/etc/resolv.conf"
ln -sf /usr/share/zoneinfo/Etc/UTC "$root/etc/localtime"
: > "$root/etc/machine-id"
"""


class RootfsError(Exception):
    """A root file system could not be built; the message holds the last lines of the build."""


def root(release: str) -> Path:
    """Return the root tree of a Debian release, built if it is not there yet (about a minute).

    Nothing may be written to it: hosts lay an overlay over it.

    Args:
        release: a key of :data:`RELEASES`.

    Raises:
        RootfsError: no such release, or the build failed.
    """
    if release not in RELEASES:
        raise RootfsError(f"no test hosts of release {release}; known are {', '.join(RELEASES)}")
    folder = CACHE / f"root-{release}-{_recipe(release)}"
    with locked(CACHE / f"root-{release}.lock"):
        if not folder.is_dir():
            _build(release, folder)
            for old in CACHE.glob(f"root-{release}-*"):
                if old != folder and not _in_use(old):
                    shutil.rmtree(old)
    return folder


def resolv_conf() -> str:
    """Return this machine's resolver configuration, for hosts to use."""
    return Path("/etc/resolv.conf").read_text()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file; another process that holds it is waited for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _cached(release: str) -> tuple[str, ...]:
    return (*CACHED, *CACHED_OF_RELEASE[release])


def _recipe(release: str) -> str:
    parts = [MIRROR, SECURITY_MIRROR, COMPONENTS, *BARE, *_cached(release), USER, _SETUP, _sources(release)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def _sources(release: str) -> str:
    """Return the sources a stock Debian installation has."""
    keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"
    return (
        f"Types: deb\nURIs: {MIRROR}\nSuites: {release} {release}-updates\nComponents: {COMPONENTS}\n"
        f"Signed-By: {keyring}\n\n"
        f"Types: deb\nURIs: {SECURITY_MIRROR}\nSuites: {release}-security\nComponents: {COMPONENTS}\n"
        f"Signed-By: {keyring}\n"
    )


def _build(release: str, folder: Path) -> None:
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as name:
        work = Path(name)
        tree = work / "root"
        (work / "debian.sources").write_text(_sources(release))
        (work / "resolv.conf").write_text(resolv_conf())
        _run(
            [
                *("mmdebstrap", "--mode=root", "--variant=minbase", f"--components={COMPONENTS.replace(' ', ',')}"),
                *(f"--include={','.join(BARE)}", release, str(tree), MIRROR),
                f"deb {SECURITY_MIRROR} {release}-security {COMPONENTS}",
            ],
            folder.name,
        )
        script = _SETUP.replace("ADMIN", USER).replace("CACHED", " ".join(_cached(release)))
        namespace = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--propagation", "private"]
        _run([*namespace, "sh", "-c", script, "setup", str(tree), str(work)], folder.name)
        tree.chmod(0o755)
        tree.rename(folder)


def _run(command: list[str], name: str) -> None:
    result = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if result.returncode:
        last = "\n".join(result.stdout.splitlines()[-15:])
        raise RootfsError(f"{name}: the root file system could not be built, see the last lines:\n{last}")


def _in_use(folder: Path) -> bool:
    """Tell whether a running host has its overlay on a root tree."""
    for mounts in Path("/proc").glob("[0-9]*/mounts"):
        try:
            if f"lowerdir={folder}," in mounts.read_text():
                return True
        except OSError:
            continue
    return False
