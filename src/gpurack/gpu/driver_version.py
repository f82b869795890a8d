"""Versions of NVIDIA drivers: comparison, the least one that is accepted, and which of those on offer is taken."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

MINIMUM = "535.86"
"""Older drivers are the cause behind the serving stack's "ERR_GPU"."""


class DriverError(ValueError):
    """There is no fit driver; the message says why, and what to change."""


def upstream(package_version: str) -> str:
    """Return NVIDIA's version in a package's: ``550.163.01`` for ``550.163.01-2``; empty where there is none."""
    match = re.match(r"(?:\d+:)?(\d{3,}(?:\.\d+)+)", package_version)
    return match[1] if match else ""


def key(version: str) -> tuple[int, ...]:
    """Return what versions are compared by; of package versions NVIDIA's part counts."""
    return tuple(int(part) for part in re.findall(r"\d+", upstream(version) or "0"))


def branch_of(version: str) -> str:
    """Return the branch of a version: its first number."""
    return version.partition(".")[0]


def at_least(version: str, what: str, minimum: str = MINIMUM) -> None:
    """Raise a DriverError if a version is older than the least accepted one.

    Args:
        version: version to look at.
        what: what has it, for the message.
        minimum: least accepted version.
    """
    if key(version) < key(minimum):
        raise DriverError(
            f"{what} is version {version or 'unknown'}, older than {minimum}; older drivers fail under load (ERR_GPU)"
        )


def resolve(
    available: Mapping[str, Sequence[str]],
    packages: Sequence[str],
    *,
    branch: str,
    version: str | None = None,
    installed: Mapping[str, str] | None = None,
    upgrade: bool = False,
) -> str:
    """Return the version of the driver to have: the installed one where nothing speaks against it.

    The newest version of a single package is not enough: Debian 12's security archive has newer libraries than the
    open kernel module they would have to match.

    Args:
        available: package -> its versions in all sources.
        packages: those that must all have the same version, the one with the kernel module first.
        branch: driver branch.
        version: the exact version the settings ask for.
        installed: package -> version of those that are installed.
        upgrade: take the newest one even if another one is installed.

    Raises:
        DriverError: the sources have no fit version, and none is installed.
    """
    here = {name: upstream((installed or {}).get(name, "")) for name in packages}
    offers = {name: ({upstream(text) for text in available.get(name, ())} | {here[name]}) - {""} for name in packages}
    kept = next((here[name] for name in packages if here[name]), None)
    if (
        kept
        and version in (None, kept)
        and not (upgrade and version is None)
        and branch_of(kept) == branch
        and key(kept) >= key(MINIMUM)
        and all(kept in versions for versions in offers.values())
    ):
        return kept
    missing = [name for name, versions in offers.items() if not versions]
    if missing:
        raise DriverError(
            f"no package source has {', '.join(missing)}; check nvidia_driver.source, and that base.components holds "
            "contrib, non-free and non-free-firmware (Debian) or restricted and multiverse (Ubuntu)"
        )
    common = set.intersection(*offers.values())
    if version is not None:
        if version not in common:
            raise DriverError(f"the package sources have no driver {version}; {_offer(offers, common)}")
        at_least(version, "the driver asked for")
        return version
    of_branch = {item for item in common if branch_of(item) == branch}
    if not of_branch:
        raise DriverError(f"the package sources have no driver of branch {branch}; {_offer(offers, common)}")
    newest = max(of_branch, key=key)
    at_least(newest, f"the newest driver of branch {branch} in the package sources")
    return newest


def _offer(offers: Mapping[str, set[str]], common: set[str]) -> str:
    if common:
        return f"they have {', '.join(sorted(common, key=key, reverse=True))}"
    ranges = "; ".join(f"{name} {'/'.join(sorted(versions, key=key))}" for name, versions in offers.items())
    return f"no version is there of all packages ({ranges})"
