"""Packages of NVIDIA's driver in each source: names, layouts, and what a source does not have.

Names are those of Debian's and Ubuntu's archives, and of NVIDIA's driver installation guide, "compute-only" (from
branch 560 on).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from gpurack.gpu.driver_version import DriverError, at_least, upstream

KEYRING = "/etc/apt/keyrings/gpurack-nvidia.gpg"

NVIDIA_BRANCH = "580"
"""Default branch of NVIDIA's repository and of Ubuntu: it serves every card from Maxwell to Blackwell."""

NVIDIA_FIRST_BRANCH = 570
NVIDIA_UBUNTU_LAST_BRANCH = 580
NVIDIA_REPOSITORIES = {"bookworm": "debian12", "trixie": "debian13", "jammy": "ubuntu2204", "noble": "ubuntu2404"}

KEYRING_SHA256 = {
    "bookworm": "e7f219eab6fe4819cdb5c15b98233dc3420302d9c00883219cd3d896857cf48d",
    "trixie": "dd28f1f6ba0038180d6b23f846cefca1e3de4c9327751665241370bacea452a1",
    "jammy": "d93190d50b98ad4699ff40f4f7af50f16a76dac3bb8da1eaaf366d47898ff8df",
    "noble": "d2a6b11c096396d868758b86dab1823b25e14d70333f1dfa74da5ddaf6a06dba",
}
"""SHA-256 of cuda-keyring_1.1-1_all.deb in NVIDIA's x86_64 repository of each release."""

MODULES = ("nvidia-kernel-dkms", "nvidia-open-kernel-dkms", "nvidia-kernel-open-dkms")

MODULE_PACKAGE = re.compile(
    r"(?P<open>nvidia-open-kernel-dkms|nvidia-kernel-open-dkms|nvidia-dkms-\d+(-server)?-open)"
    r"|(?P<closed>nvidia-kernel-dkms|nvidia-dkms-\d+(-server)?)"
)
"""Names of packages that hold a kernel module's source, in the archives of Debian, Ubuntu and NVIDIA."""

DRIVER_PACKAGE = re.compile(r"(lib)?nvidia-.*|libcuda1?(-.*)?|firmware-nvidia-gsp")
"""Names of packages that may carry the driver's version."""


class Source(StrEnum):
    """Where packages come from."""

    DEBIAN = "debian"
    UBUNTU = "ubuntu"
    NVIDIA = "nvidia"
    LOCAL = "local"


class Flavour(StrEnum):
    """Kind of kernel module."""

    OPEN = "open"
    PROPRIETARY = "proprietary"


class Wishes(Protocol):
    """What the settings say; see ``roles/nvidia_driver/settings.py``."""

    @property
    def source(self) -> str: ...
    @property
    def branch(self) -> str | None: ...
    @property
    def version(self) -> str | None: ...
    @property
    def flavour(self) -> str: ...
    @property
    def backports(self) -> bool: ...
    @property
    def kernel_module(self) -> str: ...
    @property
    def local_packages(self) -> dict[str, str]: ...


@dataclass(frozen=True)
class DriverChoice:
    """The driver of a host.

    Attributes:
        source: where it comes from.
        branch: major version, such as ``550``.
        flavour: kind of kernel module.
        version: exact upstream version wanted; None for the newest of the branch at the first installation.
        module: the package with the kernel module or its source.
        packages: all packages, in the order given to apt, ``module`` among them.
        same_version: those of them that carry the driver's version, and must all carry the same.
        apt_files: files below ``/etc/apt`` to write first, each from the template of the same name.
        repository: name of NVIDIA's repository for the release, with ``source`` nvidia.
        fabric_manager: the package of the fabric manager, on machines with NVSwitches.
        dkms: the module is built on the host, not shipped built.
        unwanted: packages with the other kind of module, which must not be there beside this one.
        reasons: why it is so, one sentence each.
    """

    source: Source
    branch: str
    flavour: Flavour
    version: str | None
    module: str
    packages: tuple[str, ...]
    same_version: tuple[str, ...]
    apt_files: tuple[str, ...] = ()
    repository: str = ""
    fabric_manager: str | None = None
    dkms: bool = True
    unwanted: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()

    @property
    def held(self) -> tuple[str, ...]:
        """Packages the package manager must not move by itself."""
        return tuple(name for name in self.packages if name in self.same_version)


@dataclass(frozen=True)
class Decision:
    wishes: Wishes
    distribution: str
    codename: str
    source: Source
    branch: str
    flavour: Flavour
    nvswitch: bool
    kernel_flavour: str

    @property
    def open_suffix(self) -> str:
        return "-open" if self.flavour is Flavour.OPEN else ""

    @property
    def other_suffix(self) -> str:
        return "" if self.flavour is Flavour.OPEN else "-open"


def debian(it: Decision, reasons: tuple[str, ...]) -> DriverChoice:
    if it.nvswitch:
        raise DriverError('this host has NVSwitches, and Debian no fabric manager; set nvidia_driver.source = "nvidia"')
    _only_dkms(it)
    module = "nvidia-open-kernel-dkms" if it.flavour is Flavour.OPEN else "nvidia-kernel-dkms"
    same = (
        *(module, "firmware-nvidia-gsp", "nvidia-smi", "libnvidia-ml1", "libcuda1"),
        *("libnvidia-ptxjitcompiler1", "libnvidia-nvvm4", "libnvidia-cfg1"),
    )
    # These have version numbers of their own.
    others = ("nvidia-persistenced", "nvidia-modprobe", "python3-pynvml")
    files = ("sources.list.d/gpurack-nvidia-backports.sources",) if it.wishes.backports else ()
    return _choice(it, module, (*same, *others), same, reasons, apt_files=files)


def ubuntu(it: Decision, reasons: tuple[str, ...]) -> DriverChoice:
    branch = f"{it.branch}-server"
    libraries = (f"libnvidia-compute-{branch}", f"libnvidia-cfg1-{branch}")
    tools = (f"nvidia-utils-{branch}", f"nvidia-compute-utils-{branch}")
    built = it.wishes.kernel_module == "prebuilt"
    if built:
        module = f"linux-modules-nvidia-{branch}{it.open_suffix}-{it.kernel_flavour}"
        headless = f"nvidia-headless-no-dkms-{branch}{it.open_suffix}"
        same: tuple[str, ...] = (headless, *libraries, *tools)
        # Its version number is the kernel's; it depends on userland of the branch.
        packages: tuple[str, ...] = (module, *same)
    else:
        module = f"nvidia-dkms-{branch}{it.open_suffix}"
        packages = same = (module, f"nvidia-headless-{branch}{it.open_suffix}", *libraries, *tools)
    manager = f"nvidia-fabricmanager-{it.branch}" if it.nvswitch else None
    if manager:
        packages, same = (*packages, manager), (*same, manager)
    return _choice(it, module, packages, same, reasons, fabric_manager=manager, dkms=not built)


def nvidia(it: Decision, reasons: tuple[str, ...]) -> DriverChoice:
    _only_dkms(it)
    branch = int(it.branch)
    if branch < NVIDIA_FIRST_BRANCH:
        raise DriverError(
            f"NVIDIA's repository has compute-only packages of this layout from branch {NVIDIA_FIRST_BRANCH} on, "
            f'not for {branch}; set nvidia_driver.branch = "{NVIDIA_BRANCH}"'
        )
    if it.codename not in NVIDIA_REPOSITORIES:
        raise DriverError(f"NVIDIA has no repository for {it.distribution} {it.codename}; set source to local")
    if it.distribution == "ubuntu":
        if branch > NVIDIA_UBUNTU_LAST_BRANCH:
            raise DriverError(
                f"NVIDIA's packages for Ubuntu have other names from branch 590 on, which gpurack does not know; "
                f'set nvidia_driver.branch = "{NVIDIA_BRANCH}"'
            )
        module = f"nvidia-dkms-{branch}{it.open_suffix}"
        same: tuple[str, ...] = (
            *(module, f"nvidia-headless-{branch}{it.open_suffix}", f"libnvidia-compute-{branch}"),
            *(f"libnvidia-cfg1-{branch}", f"nvidia-utils-{branch}", f"nvidia-compute-utils-{branch}"),
        )
        others: tuple[str, ...] = ()
    else:
        module = "nvidia-kernel-open-dkms" if it.flavour is Flavour.OPEN else "nvidia-kernel-dkms"
        same = (module, "nvidia-driver-cuda", "libnvidia-ml1", "libcuda1", "nvidia-persistenced")
        others = ("python3-pynvml",)
    manager = None
    if it.nvswitch:
        manager = "nvidia-fabricmanager" if branch >= 580 else f"nvidia-fabricmanager-{branch}"
        same = (*same, manager)
    return _choice(
        it,
        module,
        (*same, *others),
        same,
        reasons,
        apt_files=("sources.list.d/gpurack-nvidia.sources",),
        fabric_manager=manager,
    )


def local(it: Decision, reasons: tuple[str, ...]) -> DriverChoice:
    _only_dkms(it)
    packages = it.wishes.local_packages
    kind = "open" if it.flavour is Flavour.OPEN else "closed"
    modules = {name: match for name in packages if (match := MODULE_PACKAGE.fullmatch(name))}
    module = next((name for name, match in modules.items() if match[kind]), None)
    if module is None:
        raise DriverError(
            f"this host needs the {it.flavour} kernel module, and nvidia_driver.local_directory has only "
            f"{', '.join(modules)}; add the package, and all others in the same version"
        )
    at_least(packages[module], f"{module} in nvidia_driver.local_directory")
    version = upstream(packages[module])
    names = tuple(name for name in packages if name == module or name not in modules)
    same = tuple(name for name in names if upstream(packages[name]) == version and DRIVER_PACKAGE.fullmatch(name))
    odd = [
        f"{name} {packages[name]}"
        for name in names
        if name.startswith(("libnvidia-ml", "libcuda1", "libnvidia-compute", "nvidia-smi", "nvidia-fabricmanager"))
        and name not in same
    ]
    if odd:
        raise DriverError(f"nvidia_driver.local_directory mixes versions: {module} {version}, {', '.join(odd)}")
    manager = next((name for name in names if name.startswith("nvidia-fabricmanager")), None)
    if it.nvswitch and manager is None:
        raise DriverError(
            f"this host has NVSwitches; put the package nvidia-fabricmanager of version {version} into "
            "nvidia_driver.local_directory"
        )
    return _choice(it, module, names, same, reasons, version=version, fabric_manager=manager if it.nvswitch else None)


def _only_dkms(it: Decision) -> None:
    if it.wishes.kernel_module == "prebuilt":
        raise DriverError(
            f"modules that come built are Ubuntu's alone, source is {it.source}; "
            'set nvidia_driver.kernel_module = "dkms"'
        )


def _choice(
    it: Decision,
    module: str,
    packages: tuple[str, ...],
    same: tuple[str, ...],
    reasons: tuple[str, ...],
    *,
    version: str | None = None,
    apt_files: tuple[str, ...] = (),
    fabric_manager: str | None = None,
    dkms: bool = True,
) -> DriverChoice:
    return DriverChoice(
        source=it.source,
        branch=it.branch,
        flavour=it.flavour,
        version=version or it.wishes.version,
        module=module,
        packages=packages,
        same_version=same,
        apt_files=apt_files,
        repository=NVIDIA_REPOSITORIES.get(it.codename, "") if it.source is Source.NVIDIA else "",
        fabric_manager=fabric_manager,
        dkms=dkms,
        unwanted=tuple(
            name
            for name in (
                *MODULES,
                f"nvidia-dkms-{it.branch}{it.other_suffix}",
                f"nvidia-dkms-{it.branch}-server{it.other_suffix}",
            )
            if name != module
        ),
        reasons=reasons,
    )
