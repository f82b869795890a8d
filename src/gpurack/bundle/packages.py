"""Debian packages of a bundle: resolved by apt against a release's own indexes, made a repository by apt-ftparchive."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from gpurack.bundle.manifest import BundleError
from gpurack.bundle.signing import Signer, run
from gpurack.rendering import render

ARCHITECTURE = "amd64"
RELEASES = ("bookworm", "trixie")
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
COMPOSE_FROM = "trixie"


@dataclass(frozen=True)
class Wanted:
    """Packages for a release, and the mirrors they come from.

    Attributes:
        codename: ``bookworm`` or ``trixie``.
        names: of packages; what they need is found by apt.
        mirror: Debian mirror.
        security_mirror: mirror of security updates.
    """

    codename: str
    names: tuple[str, ...]
    mirror: str = "http://deb.debian.org/debian"
    security_mirror: str = "http://deb.debian.org/debian-security"


def fetch(wanted: Wanted, root: Path, archives: Path) -> list[Path]:
    """Download packages and all they depend on; return their files. What is there already is not downloaded again.

    An apt of its own with an empty package database is asked, so that nothing of this machine matters, and a host with
    no package at all could be made of the result.

    Args:
        wanted: the packages.
        root: folder for apt's lists and configuration.
        archives: folder of the downloads, kept between runs.

    Raises:
        BundleError: apt is not here, cannot reach a mirror, or cannot resolve the packages.
    """
    apt = _apt(wanted, root, archives)
    run([*apt, "update", "-o", "APT::Update::Error-Mode=any"], "apt")
    install = [*apt, "--yes", "--no-install-recommends", "--download-only", "install", *wanted.names]
    run(install, "apt")
    named = run([*apt, "--yes", "--no-install-recommends", "--simulate", "install", *wanted.names], "apt").decode()
    files = _chosen(named, archives)
    if not files:
        raise BundleError(f"{wanted.codename}: apt has downloaded nothing for {', '.join(wanted.names)}")
    return files


def _chosen(simulated: str, archives: Path) -> list[Path]:
    """Return the files of the packages a simulated installation names: ``Inst name (version suite [arch])``."""
    files = []
    for line in simulated.splitlines():
        words = line.split()
        if len(words) >= 3 and words[0] == "Inst":
            name, version = words[1].partition(":")[0], words[2].lstrip("(")
            found = sorted(archives.glob(f"{name}_{version.replace(':', '%3a')}_*.deb"))
            if not found:
                raise BundleError(f"{name} {version} was not downloaded; run again")
            files.append(found[0])
    return sorted(files)


def _apt(wanted: Wanted, root: Path, archives: Path) -> list[str]:
    for folder in ("etc/preferences.d", "lists/partial", "etc/apt.conf.d", "etc/trusted.gpg.d", "etc/sources.list.d"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (archives / "partial").mkdir(parents=True, exist_ok=True)
    (root / "status").write_text("")
    suites = f"{wanted.codename} {wanted.codename}-updates"
    components = "main contrib non-free non-free-firmware"
    sources = [
        _source(wanted.mirror, suites, components),
        _source(wanted.security_mirror, f"{wanted.codename}-security", components),
    ]
    if wanted.codename == "bookworm":  # as on the hosts: Compose v2, and nothing else, from the release after it
        sources.append(_source(wanted.mirror, COMPOSE_FROM, "main"))
        text = render("templates/docker/preferences.d/gpurack-compose.j2")
        (root / "etc/preferences.d/gpurack-compose").write_text(text)
    (root / "etc/sources.list.d/debian.sources").write_text("\n".join(sources))
    options = {
        "Dir::Etc": root / "etc",
        "Dir::Etc::SourceList": "/dev/null",
        "Dir::Etc::SourceParts": root / "etc/sources.list.d",
        "Dir::Etc::Preferences": "/dev/null",
        "Dir::Etc::PreferencesParts": root / "etc/preferences.d",
        "Dir::State": root,
        "Dir::State::Lists": root / "lists",
        "Dir::State::status": root / "status",
        "Dir::Cache": root,
        "Dir::Cache::Archives": archives.absolute(),
        "APT::Architecture": ARCHITECTURE,
        "APT::Architectures": ARCHITECTURE,
        "APT::Sandbox::User": "root",
        "Acquire::Languages": "none",
        "Acquire::Retries": "3",
        "Debug::NoLocking": "true",
    }
    command = ["apt-get", "-q"]
    for key, value in options.items():
        command += ["-o", f"{key}={value.absolute() if isinstance(value, Path) else value}"]
    return command


def _source(uri: str, suites: str, components: str) -> str:
    return f"Types: deb\nURIs: {uri}\nSuites: {suites}\nComponents: {components}\nSigned-By: {KEYRING}\n"


def seed(repository: Path, archives: Path) -> None:
    """Give apt what an earlier bundle in the same place has, so that only new versions are downloaded."""
    for file in (repository / "pool").glob("*.deb"):
        put(file, archives / file.name.replace(":", "%3a"), link=True)


def gather(files: Iterable[Path], repository: Path, *, link: bool) -> None:
    """Make a repository's pool of just these files.

    Args:
        files: packages as apt names them.
        repository: folder of the repository.
        link: the files are the bundle's own, and need not be there twice.
    """
    pool = repository / "pool"
    pool.mkdir(parents=True, exist_ok=True)
    wanted = {file.name.replace("%3a", ":"): file for file in files}
    for old in pool.iterdir():
        if old.name not in wanted or old.stat().st_size != wanted[old.name].stat().st_size:
            old.unlink()
    for name, file in wanted.items():
        put(file, pool / name, link=link)


def put(source: Path, target: Path, *, link: bool) -> None:
    """Put a file in place under another name, whole or not at all, unless it is there."""
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if link:
        target.hardlink_to(source)
        return
    new = target.with_name(f".{target.name}.new")
    shutil.copyfile(source, new)
    new.rename(target)


def index(repository: Path, codename: str, signer: Signer) -> None:
    """Write Packages, Release and InRelease of a flat repository, signed.

    Raises:
        BundleError: apt-ftparchive or gpg is not here, or failed.
    """
    for name in ("Packages", "Release", "InRelease"):
        (repository / name).unlink(missing_ok=True)
    text = run(["apt-ftparchive", "packages", "pool"], "apt-utils", cwd=repository)
    (repository / "Packages").write_bytes(text)
    release = {"Origin": "gpurack", "Label": "gpurack bundle", "Suite": codename, "Codename": codename}
    options = [f"-oAPT::FTPArchive::Release::{key}={value}" for key, value in release.items()]
    text = run(["apt-ftparchive", *options, "release", "."], "apt-utils", cwd=repository)
    (repository / "Release").write_bytes(text)
    signer.inline(repository / "Release", repository / "InRelease")
    (repository / "Release").unlink()
