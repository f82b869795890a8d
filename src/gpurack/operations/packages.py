"""Installation of packages on Debian and Ubuntu hosts."""

from __future__ import annotations

import shlex
from collections.abc import Generator, Mapping, Sequence
from datetime import timedelta

from pyinfra import host
from pyinfra.api import StringCommand, operation

from gpurack.facts.packages import UPDATE_STAMP, Packages
from gpurack.versions import upstream_major

APT = "DEBIAN_FRONTEND=noninteractive apt-get -y -o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold"

LISTS_MAX_AGE = timedelta(hours=12)
LOCK_TIMEOUT = timedelta(minutes=5)


@operation()
def installed(
    packages: Sequence[str],
    *,
    least_major: Mapping[str, int] | None = None,
    lists_max_age: timedelta = LISTS_MAX_AGE,
    lock_timeout: timedelta = LOCK_TIMEOUT,
) -> Generator[StringCommand, None, None]:
    """Install packages; finish an installation that was cut off, and fetch package lists only where they are needed.

    Unlike ``apt.packages(update=True)`` a host that has everything is left alone, however old its lists are; a mirror
    that cannot be reached is an error; and a lock held by another process is waited for, that of the lists included.

    Args:
        packages: names without versions.
        least_major: lowest upstream major version, for packages where an older one is something else.
        lists_max_age: lists older than this are fetched again before anything is installed.
        lock_timeout: how long to wait for another package manager to finish.
    """
    found = host.get_fact(Packages, packages=list(packages), max_age_minutes=int(lists_max_age.total_seconds() // 60))
    seconds = int(lock_timeout.total_seconds())
    if found.interrupted:
        yield StringCommand(patient("dpkg --force-confdef --force-confold --configure -a", seconds))
        yield StringCommand(patient(f"{APT} -o DPkg::Lock::Timeout={seconds} --fix-broken install", seconds))
    missing = [
        package
        for package in packages
        if package not in found.installed
        or upstream_major(found.installed[package]) < (least_major or {}).get(package, 0)
    ]
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
