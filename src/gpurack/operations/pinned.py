"""Packages at one version, held there, or from .deb files on the control machine."""

from __future__ import annotations

import shlex
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pyinfra import host
from pyinfra.api import FileUploadCommand, OperationError, operation
from pyinfra.api.command import PyinfraCommand

from gpurack.facts.driver import Held
from gpurack.facts.packages import UPDATE_STAMP, Packages
from gpurack.operations.packages import APT, LISTS_MAX_AGE, LOCK_TIMEOUT, patient
from gpurack.operations.uploads import UPLOADS

SECONDS = int(LOCK_TIMEOUT.total_seconds())


@operation()
def installed(packages: Sequence[str], version: str | None) -> Generator[str, None, None]:
    """Install packages, all at one version where one is given, up or down, and hold them there.

    Without a version whatever is installed is left alone, and what an earlier run held is released.

    Args:
        packages: names without versions.
        version: Debian version, such as ``1.18.1-1``.
    """
    found = host.get_fact(Packages, packages=list(packages), max_age_minutes=int(LISTS_MAX_AGE.total_seconds() // 60))
    held = host.get_fact(Held) & set(packages)
    wrong = [
        name
        for name in packages
        if name not in found.installed or (version is not None and found.installed[name] != version)
    ]
    if found.interrupted:
        yield from _finish()
    if wrong and found.lists_stale:
        yield patient("apt-get update -o APT::Update::Error-Mode=any", SECONDS)
        yield f"mkdir -p {UPDATE_STAMP.rpartition('/')[0]} && touch {UPDATE_STAMP}"
    if wrong:
        # All of them, not only the wrong ones: they depend on each other at exactly the same version.
        wanted = [f"{name}={version}" for name in packages] if version else wrong
        options = "--no-install-recommends --allow-downgrades --allow-change-held-packages"
        yield patient(f"{APT} -o DPkg::Lock::Timeout={SECONDS} install {options} {shlex.join(wanted)}", SECONDS)
    if version and held != set(packages):
        yield f"apt-mark hold {shlex.join(packages)}"
    if not version and held:
        yield f"apt-mark unhold {shlex.join(sorted(held))}"
    if not wrong and not found.interrupted and held == (set(packages) if version else set()):
        host.noop(f"packages {', '.join(packages)} are installed")


def _finish() -> Generator[str, None, None]:
    """Finish an installation that was cut off."""
    yield patient("dpkg --force-confdef --force-confold --configure -a", SECONDS)
    yield patient(f"{APT} -o DPkg::Lock::Timeout={SECONDS} --fix-broken install", SECONDS)


@dataclass(frozen=True)
class Deb:
    """A package file, known by its name: ``package_version_architecture.deb``."""

    path: Path
    package: str
    version: str


def debs_in(directory: Path, packages: Sequence[str]) -> list[Deb]:
    """Return the file of each package in a directory.

    Raises:
        OperationError: a package has no file there, or several.
    """
    chosen = []
    for package in packages:
        files = sorted(directory.glob(f"{package}_*.deb"))
        if len(files) != 1:
            there = ", ".join(file.name for file in files) or "none"
            raise OperationError(f"{directory}: expected one file {package}_<version>_<arch>.deb, found {there}")
        version = files[0].name.split("_")[1].replace("%3a", ":")
        chosen.append(Deb(files[0], package, version))
    return chosen


@operation()
def from_directory(directory: Path, packages: Sequence[str]) -> Generator[str | PyinfraCommand, None, None]:
    """Install packages from files on the control machine, for hosts that reach no repository of theirs.

    What they depend on beyond each other comes from the host's own sources.

    Args:
        directory: where the files are, named as apt names them.
        packages: names; each must have exactly one file.
    """
    debs = debs_in(directory, packages)
    found = host.get_fact(Packages, packages=list(packages), max_age_minutes=10**6)
    held = host.get_fact(Held)
    if found.interrupted:
        yield from _finish()
    if any(found.installed.get(deb.package) != deb.version for deb in debs):
        yield f'install -d -m 755 {Path(UPLOADS).parent} && install -d -m 700 -o "${{SUDO_USER:-root}}" {UPLOADS}'
        names = [f"{UPLOADS}/{deb.path.name}" for deb in debs]
        for deb, name in zip(debs, names, strict=True):
            yield FileUploadCommand(str(deb.path), name, _sudo=False)
        options = "--no-install-recommends --allow-downgrades --allow-change-held-packages"
        install = f"{APT} -o DPkg::Lock::Timeout={SECONDS} install {options} {shlex.join(names)}"
        yield f"{patient(install, SECONDS)}; rm -f {shlex.join(names)}"
    if not set(packages) <= held:
        yield f"apt-mark hold {shlex.join(packages)}"
