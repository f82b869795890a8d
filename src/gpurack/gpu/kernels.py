"""Kernels of a host, and the headers a module is built with."""

from __future__ import annotations

import re
from dataclasses import dataclass

from gpurack.gpu.driver_version import DriverError

META = re.compile(r"linux-image-(?!\d)(?!.*(-dbg|-unsigned))(?P<flavour>[a-z0-9][a-z0-9.+-]*)")
DEBIAN_RELEASE = re.compile(r"-(?P<flavour>(?:cloud-|rt-)?(?:amd64|arm64))$")
UBUNTU_RELEASE = re.compile(r"^\d+\.\d+\.\d+-\d+-(?P<flavour>[a-z][a-z0-9.-]*)$")


@dataclass(frozen=True)
class Kernels:
    """Kernels and headers.

    Attributes:
        architecture: Debian's name, such as ``amd64``.
        container: the running kernel belongs to another host.
        running: release of the running kernel.
        images: releases of the installed kernels.
        headers: releases whose headers are installed.
        metas: installed packages that follow the newest kernel, such as ``linux-image-amd64``.
    """

    architecture: str = "amd64"
    container: bool = False
    running: str = ""
    images: tuple[str, ...] = ()
    headers: tuple[str, ...] = ()
    metas: tuple[str, ...] = ()

    @property
    def newest(self) -> str | None:
        """The newest installed kernel: what the next boot starts."""
        return max(self.images, key=release_key, default=None)

    @property
    def targets(self) -> tuple[str, ...]:
        """Kernels that need the module: the running and the newest installed one.

        In a container, where no kernel is the host's own, all those whose headers are there.
        """
        if self.container:
            return tuple(sorted(self.headers, key=release_key))
        return tuple(dict.fromkeys(kernel for kernel in (self.running, self.newest) if kernel))


@dataclass(frozen=True)
class Headers:
    """Packages with kernel headers.

    Attributes:
        packages: names to install; the first follows the newest kernel.
        exact: headers of the running kernel; a package source may have only newer ones.
        image: the package that follows the newest kernel itself, installed when ``exact`` cannot be had.
        notes: what is out of the ordinary, one sentence each.
    """

    packages: tuple[str, ...]
    exact: str | None
    image: str | None
    notes: tuple[str, ...] = ()


def release_key(release: str) -> tuple[tuple[int, int | str], ...]:
    """Return what kernel releases are ordered by: 6.12.118 is newer than 6.12.9."""
    return tuple((1, int(part)) if part.isdigit() else (0, part) for part in re.findall(r"\d+|[a-z]+", release))


def headers_for(kernels: Kernels, distribution: str) -> Headers:
    """Return the headers for the running and the newest kernel, now and after every kernel update.

    Raises:
        DriverError: the running kernel is none of the distribution's, so that no package has its headers.
    """
    default = kernels.architecture if distribution == "debian" else "generic"
    if kernels.container:
        foreign = (
            f"the host is a container, its kernel {kernels.running} is another host's: modules are built for "
            f"the kernels whose headers are installed (linux-headers-{default})",
        )
        return Headers((f"linux-headers-{default}",), None, None, foreign)
    flavours = [match["flavour"] for name in kernels.metas if (match := META.fullmatch(name))]
    own = (DEBIAN_RELEASE if distribution == "debian" else UBUNTU_RELEASE).search(kernels.running)
    if kernels.running in kernels.headers:
        exact = None
    elif own:
        exact = f"linux-headers-{kernels.running}"
    else:
        raise DriverError(
            f"the running kernel {kernels.running} is not one of {distribution.capitalize()}'s, and its headers are "
            f"not in /lib/modules/{kernels.running}/build; install them, or boot a kernel of the distribution "
            f"(apt-get install linux-image-{default})"
        )
    notes: tuple[str, ...] = ()
    if not flavours:
        flavours = [own["flavour"] if own else default]
        notes = (f"no package follows the newest kernel: linux-headers-{flavours[0]} does from now on",)
    return Headers(
        tuple(f"linux-headers-{flavour}" for flavour in dict.fromkeys(flavours)),
        exact,
        f"linux-image-{flavours[0]}",
        notes,
    )
