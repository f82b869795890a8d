"""Packages and kernel parameters of Debian and Ubuntu hosts."""

from __future__ import annotations

import shlex
from collections.abc import Generator, Mapping
from datetime import timedelta

from pyinfra import host
from pyinfra.api import StringCommand, operation
from pyinfra.facts.server import Sysctl

from gpurack.facts.debian import UPDATE_STAMP, Packages

APT = "DEBIAN_FRONTEND=noninteractive apt-get -y -o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold"


@operation()
def packages(
    packages: list[str], *, lists_max_age: timedelta = timedelta(hours=12), lock_timeout: timedelta
) -> Generator[StringCommand, None, None]:
    """Install packages; finish an installation that was cut off, and fetch package lists only where they are needed.

    Unlike ``apt.packages(update=True)`` a host that has everything is left alone, however old its lists are; a mirror
    that cannot be reached is an error; and a lock held by another process is waited for, that of the lists included.

    Args:
        packages: names without versions.
        lists_max_age: lists older than this are fetched again before anything is installed.
        lock_timeout: how long to wait for another package manager to finish.
    """
    found = host.get_fact(Packages, packages=packages, max_age_minutes=int(lists_max_age.total_seconds() // 60))
    seconds = int(lock_timeout.total_seconds())
    if found.interrupted:
        yield StringCommand(patient("dpkg --force-confdef --force-confold --configure -a", seconds))
        yield StringCommand(patient(f"{APT} -o DPkg::Lock::Timeout={seconds} --fix-broken install", seconds))
    missing = [package for package in packages if package not in found.installed]
    if missing and found.lists_stale:
        yield StringCommand(patient("apt-get update -o APT::Update::Error-Mode=any", seconds))
        yield StringCommand("mkdir", "-p", UPDATE_STAMP.rpartition("/")[0], "&&", "touch", UPDATE_STAMP)
    if missing:
        install = f"{APT} -o DPkg::Lock::Timeout={seconds} install --no-install-recommends {shlex.join(missing)}"
        yield StringCommand(patient(install, seconds))
    if not missing and not found.interrupted:
        host.noop(f"packages {', '.join(packages)} are installed")


def patient(command: str, seconds: int) -> str:
    """Return a shell command that runs another one again while it fails because of a package manager's lock.

    ``DPkg::Lock::Timeout`` covers dpkg's own locks; ``apt-get update`` and ``dpkg`` wait for nothing.
    """
    return (
        f"end=$(($(date +%s) + {seconds})); until out=$({command} 2>&1); do case $out in "
        '*"Could not get lock"*|*"Unable to lock"*|*"locked by another process"*) '
        '[ "$(date +%s)" -lt "$end" ] && sleep 1 && continue ;; esac; '
        'printf "%s\\n" "$out" >&2; exit 100; done'
    )


@operation()
def sysctls(values: Mapping[str, int | str]) -> Generator[StringCommand, None, None]:
    """Set kernel parameters in the running kernel, all in one go; a file makes them last.

    Args:
        values: parameter names, such as ``net.core.somaxconn``, and values.
    """
    found = host.get_fact(Sysctl, keys=list(values))
    wrong = {key: value for key, value in values.items() if plain(found.get(key)) != str(value)}
    if not wrong:
        host.noop("kernel parameters are set")
        return
    yield StringCommand("sysctl", "-q", "-w", *(shlex.quote(f"{key}={value}") for key, value in wrong.items()))


def plain(value: object) -> str:
    """Return a value of pyinfra's Sysctl fact as sysctl prints it: lists separated by spaces."""
    return " ".join(str(item) for item in value) if isinstance(value, list) else str(value)
