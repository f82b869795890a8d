"""Packages that test hosts have downloaded, kept on this machine so that the next run downloads nothing."""

from __future__ import annotations

import subprocess
from pathlib import Path

from gpurack.lab import Machine
from gpurack.lab.rootfs import CACHE

ARCHIVES = "/var/cache/apt/archives"


def kept(release: str) -> Path:
    """Return the folder with a release's packages on this machine."""
    folder = CACHE / f"apt-{release}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def seed(machine: Machine) -> None:
    """Put the packages that are kept into a host's apt cache."""
    command = ["tar", "-C", str(kept(machine.release)), "-cf", "-", "."]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as tar:
        remote = [*machine.ssh_command(), f"sudo tar -x --no-same-owner --no-overwrite-dir -C {ARCHIVES} -f -"]
        subprocess.run(remote, stdin=tar.stdout, check=True, capture_output=True)


def keep(machine: Machine) -> None:
    """Keep what a host has in its apt cache; packages that a newer version has replaced go."""
    remote = [*machine.ssh_command(), f"sudo tar -C {ARCHIVES} -cf - --exclude=partial --exclude=lock ."]
    with subprocess.Popen(remote, stdout=subprocess.PIPE) as tar:
        folder = kept(machine.release)
        subprocess.run(["tar", "-x", "-C", str(folder), "-f", "-"], stdin=tar.stdout, check=True)
    newest: dict[str, Path] = {}
    for file in sorted(folder.glob("*.deb"), key=lambda path: path.stat().st_mtime):
        name = file.name.partition("_")[0]
        if name in newest:
            newest[name].unlink()
        newest[name] = file
