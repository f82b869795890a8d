"""Operations that install NVIDIA's driver and keep it: packages, pin, hold, DKMS builds, initial RAM disks."""

from __future__ import annotations

import shlex
from collections.abc import Generator, Mapping, Sequence
from io import StringIO
from pathlib import Path

from pyinfra import host, logger
from pyinfra.api import FileUploadCommand, StringCommand, operation
from pyinfra.api.command import PyinfraCommand
from pyinfra.facts.files import Sha256File
from pyinfra.operations import files

from gpurack.facts.driver import (
    STOPPED_CONTAINERS,
    Available,
    ContainersWithGpus,
    Dkms,
    Held,
    KernelState,
    StaleInitramfs,
)
from gpurack.facts.packages import UPDATE_STAMP, Packages
from gpurack.facts.textfile import TextFile
from gpurack.gpu.driver_packages import KEYRING, DriverChoice
from gpurack.gpu.driver_version import DriverError, resolve, upstream
from gpurack.gpu.kernels import Headers
from gpurack.operations.packages import APT, LISTS_MAX_AGE, LOCK_TIMEOUT, patient
from gpurack.operations.uploads import UPLOADS
from gpurack.rendering import render

Commands = Generator[str | PyinfraCommand, None, None]

PIN = "/etc/apt/preferences.d/gpurack-nvidia-driver"
LOCK_SECONDS = int(LOCK_TIMEOUT.total_seconds())

# DKMS names its own log in a line that apt buries; what the compiler said is in the log's last lines.
MAKE_LOG = (
    "log=$(ls -t /var/lib/dkms/nvidia*/*/build/make.log 2>/dev/null | head -n 1); "
    '[ -z "$log" ] || { echo "the kernel module was not built; $log ends:" >&2; '
    "grep -E 'error|Error|\\*\\*\\*' \"$log\" | tail -n 15 | cut -c 1-300 >&2; }"
)


def failure(message: str) -> StringCommand:
    """Return a command that fails with a message: an exception in the middle of a run would end it for every host."""
    return StringCommand(f"printf '%s\\n' {shlex.quote(message)} >&2; exit 1")


@operation()
def cuda_keyring(url: str, sha256: str) -> Commands:
    """Put the key of NVIDIA's repository in place, out of the package NVIDIA distributes it in.

    Only the key is taken: the package's own list of sources and pin would stand beside ours.

    + url: where ``cuda-keyring_1.1-1_all.deb`` is
    + sha256: checksum of that file, in hexadecimal
    """
    stamp = f"{KEYRING}.from"
    if host.get_fact(Sha256File, path=KEYRING) and (found := host.get_fact(TextFile, path=stamp)):
        recorded, _, of_key = found.content.strip().partition(" ")
        if (recorded, of_key) == (sha256, host.get_fact(Sha256File, path=KEYRING)):
            host.noop("the key of NVIDIA's repository is in place")
            return
    source = shlex.quote(url)
    yield (
        f"install -d -m 755 {Path(KEYRING).parent} && work=$(mktemp -d) && trap 'rm -rf $work' EXIT || exit 1\n"
        f"curl -fsSL --max-time 60 -o $work/keyring.deb {source} || exit 1\n"
        f"echo '{sha256}  '$work/keyring.deb | sha256sum --check --quiet || {{ echo 'the package at '{source}' is not "
        "the pinned one; compare the key in it with the one NVIDIA publishes, and set nvidia_driver.keyring_sha256' "
        ">&2; exit 1; }\n"
        "dpkg-deb --fsys-tarfile $work/keyring.deb | tar -x -O -f - ./usr/share/keyrings/cuda-archive-keyring.gpg "
        f"> $work/key && test -s $work/key && install -m 644 $work/key {KEYRING} && "
        f"echo {sha256} $(sha256sum < {KEYRING} | cut -d' ' -f1) > {stamp}"
    )


@operation()
def installed(
    choice: DriverChoice,
    headers: Headers,
    *,
    upgrade: bool = False,
    stop_containers: bool = True,
    local_files: Mapping[str, Path] | None = None,
) -> Commands:
    """Install the driver in one version, with the headers its module is built with, and pin that version.

    The version is decided when the package lists are fresh, and before anything is installed. Containers that use
    GPUs are stopped before the libraries under them are exchanged.

    + choice: packages, branch and version
    + headers: kernel headers
    + upgrade: move to the newest version of the branch
    + stop_containers: stop containers with GPUs before the driver changes
    + local_files: package -> .deb file on the control machine, for ``source`` local
    """
    wanted = [*choice.packages, *headers.packages, *([headers.exact] if headers.exact else [])]
    asked = [*wanted, *choice.unwanted, *([headers.image] if headers.image else [])]
    found = host.get_fact(Packages, packages=asked, max_age_minutes=int(LISTS_MAX_AGE.total_seconds() // 60))
    if found.interrupted:
        # A module that does not compile fails here again; what is installed below may be its cure, or says why.
        configure = patient("dpkg --force-confdef --force-confold --configure -a", LOCK_SECONDS)
        repair = patient(f"{APT} -o DPkg::Lock::Timeout={LOCK_SECONDS} --fix-broken install", LOCK_SECONDS)
        yield f"({configure}) 2>/dev/null && ({repair}) 2>/dev/null; true"
        found = host.get_fact(Packages, packages=asked, max_age_minutes=0)
    unwanted = [name for name in choice.unwanted if name in found.installed]
    have = {name: upstream(found.installed.get(name, "")) for name in choice.same_version}
    pin = host.get_fact(TextFile, path=PIN)
    complete = all(name in found.installed for name in wanted) and len(set(have.values())) == 1
    current = next(iter(have.values()))
    pinned = pin and (pin.content, pin.owner, pin.mode) == (_pin(current), "root:root", "644")
    if complete and pinned and not unwanted and not upgrade and _acceptable(current, choice):
        host.noop(f"driver {current} is installed and pinned")
        return
    if not host.state.is_executing:
        yield "true"  # what exactly, only fresh package lists tell
        return
    if found.lists_stale or upgrade:
        yield patient("apt-get update -o APT::Update::Error-Mode=any", LOCK_SECONDS)
        yield f"mkdir -p {Path(UPDATE_STAMP).parent} && touch {UPDATE_STAMP}"
    offers = _offers(choice, headers, local_files)
    try:
        version = resolve(
            offers,
            choice.same_version,
            branch=choice.branch,
            version=choice.version,
            installed=found.installed,
            upgrade=upgrade,
        )
    except DriverError as error:
        yield failure(str(error))
        return
    if not pin or (pin.content, pin.owner, pin.mode) != (_pin(version), "root:root", "644"):
        yield from files.put._inner(src=StringIO(_pin(version)), dest=PIN, user="root", group="root", mode="644")
    exact = [headers.exact] if headers.exact else []
    if exact and exact[0] not in offers and headers.image:
        logger.warning(
            f"{host.print_prefix}no package source has {exact[0]} any more: {headers.image} brings the newest kernel"
        )
        exact = [headers.image]
    moving = [name for name in choice.same_version if have[name] not in ("", version)]
    names = [
        name
        for name in (*choice.packages, *headers.packages, *exact)
        if _to_install(name, found.installed, have, version)
    ]
    if not names and not unwanted:
        return
    if moving and stop_containers:
        yield from _stop_containers()
    yield from _install(choice, names, unwanted, version, offers, local_files or {})


def _acceptable(version: str, choice: DriverChoice) -> bool:
    try:
        resolve({}, ["driver"], branch=choice.branch, version=choice.version, installed={"driver": version})
    except DriverError:
        return False
    return True


def _offers(
    choice: DriverChoice, headers: Headers, local_files: Mapping[str, Path] | None
) -> dict[str, tuple[str, ...]]:
    names = [*choice.packages, *headers.packages, *([headers.exact] if headers.exact else [])]
    found: dict[str, tuple[str, ...]] = host.get_fact(Available, packages=names)
    offers = dict(found)
    for name, file in (local_files or {}).items():
        offers[name] = (file.name.split("_")[1].rpartition("%3a")[2],)
    return offers


def _to_install(name: str, installed: Mapping[str, str], have: Mapping[str, str], version: str) -> bool:
    return name not in installed or (name in have and have[name] != version)


def _stop_containers() -> Commands:
    running = host.get_fact(ContainersWithGpus).running
    if running:
        ids = " ".join(running)
        yield (
            f"install -d -m 700 {Path(STOPPED_CONTAINERS).parent} && "
            f"printf '%s\\n' {ids} >> {STOPPED_CONTAINERS} && docker stop {ids} >/dev/null"
        )


def _install(
    choice: DriverChoice,
    names: Sequence[str],
    unwanted: Sequence[str],
    version: str,
    offers: Mapping[str, Sequence[str]],
    local_files: Mapping[str, Path],
) -> Commands:
    arguments, uploaded = [], []
    for name in names:
        if name in local_files:
            remote = f"{UPLOADS}/{local_files[name].name}"
            uploaded.append((local_files[name], remote))
            arguments.append(remote)
        elif name in choice.same_version:
            full = next(text for text in offers[name] if upstream(text) == version)
            arguments.append(f"{name}={full}")
        else:
            arguments.append(name)
    if uploaded:
        yield f'install -d -m 755 {Path(UPLOADS).parent} && install -d -m 700 -o "${{SUDO_USER:-root}}" {UPLOADS}'
    for file, remote in uploaded:
        yield FileUploadCommand(str(file), remote, _sudo=False)
    apt = (
        f"{APT} -o DPkg::Lock::Timeout={LOCK_SECONDS} install --no-install-recommends --allow-downgrades "
        f"--allow-change-held-packages {shlex.join(arguments)} {' '.join(f'{name}-' for name in unwanted)}"
    )
    clean = f"rm -f {shlex.join(remote for _, remote in uploaded)}; " if uploaded else ""
    yield f"({patient(apt, LOCK_SECONDS)}); status=$?; {clean}[ $status = 0 ] || {{ {MAKE_LOG}; exit $status; }}"


def _pin(version: str) -> str:
    return render("templates/nvidia_driver/preferences.d/gpurack-nvidia-driver.j2", version=version)


@operation()
def held(packages: Sequence[str]) -> Commands:
    """Keep packages at their version: nothing moves them but a run of this role.

    + packages: names
    """
    missing = [name for name in packages if name not in host.get_fact(Held)]
    if not missing:
        host.noop("the driver's packages are held")
        return
    yield f"apt-mark hold {shlex.join(missing)}"


@operation()
def built(choice: DriverChoice) -> Commands:
    """Have the kernel module built for every kernel that needs it: the running one and the newest.

    A build that fails fails the step with what the compiler said.

    + choice: the driver
    """
    found = host.get_fact(Packages, packages=[choice.module], max_age_minutes=0)
    if choice.module not in found.installed:
        if host.state.is_executing:
            yield failure(f"{choice.module} is not installed")
        return
    version, kernels, dkms = upstream(found.installed[choice.module]), host.get_fact(KernelState), host.get_fact(Dkms)
    missing = [kernel for kernel in kernels.targets if not dkms.installed(version, kernel)]
    if not missing:
        host.noop(f"module {version} is built for {', '.join(kernels.targets) or 'no kernel: there are no headers'}")
        return
    source = dkms.source_of(version)
    if source is None:
        yield f"{APT} install --reinstall {choice.module}"
        return
    for kernel in missing:
        if kernel not in kernels.headers:
            if kernel == kernels.running != kernels.newest and kernels.newest in kernels.headers:
                continue  # superseded, its headers are gone: the next boot leaves it behind
            yield failure(
                f"the headers of kernel {kernel} are not installed (no package source has them any more?); "
                "reboot into the newest kernel, or install linux-headers for it, and run again"
            )
            return
        yield (
            f"dkms install {source}/{version} -k {kernel} >/dev/null 2>&1 || {{ {MAKE_LOG}; "
            f"echo 'DKMS did not build {source} {version} for kernel {kernel}' >&2; exit 1; }}"
        )


@operation()
def initramfs(path: str) -> Commands:
    """Make initial RAM disks again that are older than a file which they have to hold.

    + path: file, such as one of /etc/modprobe.d
    """
    if not host.get_fact(StaleInitramfs, path=path):
        host.noop("the initial RAM disks are newer")
        return
    yield "update-initramfs -u -k all"
