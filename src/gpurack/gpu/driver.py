"""Which NVIDIA driver a host gets: packages, module flavour and where they come from, or why there is none.

Pure decisions over what is known before anything is installed. Which version of the packages is then taken is decided
in :mod:`gpurack.gpu.driver_version`, once the package manager has said what it offers.

Facts and their sources:

- Branches and architectures: NVIDIA's "CUDA GPU support by driver" notes. 470 is the last branch for Kepler, 390 for
  Fermi, 580 for Maxwell, Pascal and Volta; 570 is the first for Blackwell.
- Flavours: NVIDIA's driver installation guide, "Kernel modules". Open modules know Turing and later, proprietary ones
  everything before Blackwell; open is recommended from branch 560 on, wherever it works.
- Package names: Debian's and Ubuntu's archives; NVIDIA's guide, "compute-only" (from branch 560 on).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from gpurack.gpu.driver_version import MINIMUM, DriverError, at_least, branch_of, upstream
from gpurack.gpu.models import Architecture, Card

KEYRING = "/etc/apt/keyrings/gpurack-nvidia.gpg"

DEBIAN_BRANCHES = {"bookworm": "535", "trixie": "550"}
"""The one branch of each Debian release; backports have never had another one."""

UBUNTU_BRANCH = "580"
NVIDIA_BRANCH = "580"
"""Default of the sources with several branches: it serves every card from Maxwell to Blackwell."""

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

LAST_BRANCH = {
    Architecture.FERMI: 390,
    Architecture.KEPLER: 470,
    Architecture.MAXWELL: 580,
    Architecture.PASCAL: 580,
    Architecture.VOLTA: 580,
}
FIRST_BRANCH = {Architecture.BLACKWELL: 570}

OPEN_SINCE_BRANCH = 560
"""From it on NVIDIA's own installers prefer the open module. Debian's branches are older: in Debian 12 the open package
gets no security updates (535.261.03 beside 535.309.01), in Debian 13 it does not build with Linux 6.12.118."""


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


def choose(
    wishes: Wishes,
    distribution: str,
    codename: str,
    cards: Sequence[Card],
    nvswitches: Sequence[str] = (),
    kernel_flavour: str = "generic",
) -> DriverChoice:
    """Return the driver for a host's cards.

    Args:
        wishes: the settings.
        distribution: ``debian`` or ``ubuntu``.
        codename: release, such as ``trixie``.
        cards: the GPUs, at least one.
        nvswitches: NVSwitch bridges.
        kernel_flavour: which of Ubuntu's kernels, for modules that come built: ``generic``, ``aws``, ...

    Raises:
        DriverError: there is no such driver; the message says why and what to change.
    """
    source, why = _source(wishes, distribution, codename, cards, nvswitches)
    branch, why_branch = _branch(wishes, source, codename)
    _supported(branch, cards, source)
    flavour, why_flavour = _flavour(wishes, branch, cards)
    choice = {
        Source.DEBIAN: _debian,
        Source.UBUNTU: _ubuntu,
        Source.NVIDIA: _nvidia,
        Source.LOCAL: _local,
    }[source]
    return choice(
        _Decision(wishes, distribution, codename, source, branch, flavour, bool(nvswitches), kernel_flavour),
        tuple(reason for reason in (why, why_branch, *why_flavour) if reason),
    )


@dataclass(frozen=True)
class _Decision:
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


def _source(
    wishes: Wishes, distribution: str, codename: str, cards: Sequence[Card], nvswitches: Sequence[str]
) -> tuple[Source, str]:
    if wishes.source != "auto":
        source = Source(wishes.source)
        if source in (Source.DEBIAN, Source.UBUNTU) and source != distribution:
            raise DriverError(
                f'this host runs {distribution.capitalize()}, source is "{source}"; '
                f'set nvidia_driver.source = "{distribution}" or "auto"'
            )
        return source, ""
    if distribution == "ubuntu":
        return Source.UBUNTU, ""
    if nvswitches:
        return Source.NVIDIA, "Debian has no fabric manager, which NVSwitches need: NVIDIA's repository is used"
    branch = DEBIAN_BRANCHES.get(codename)
    if branch and wishes.branch not in (None, branch) and not wishes.backports:
        return Source.NVIDIA, f"Debian's branch is {branch}, not {wishes.branch}: NVIDIA's repository is used"
    for card in cards:
        if branch and int(branch) < FIRST_BRANCH.get(_architecture(card), 0):
            return Source.NVIDIA, f"Debian's branch {branch} is too old for {_named(card)}: NVIDIA's repository is used"
    return Source.DEBIAN, ""


def _branch(wishes: Wishes, source: Source, codename: str) -> tuple[str, str]:
    if source is Source.LOCAL:
        return _local_branch(wishes.local_packages), ""
    asked = wishes.branch or (branch_of(wishes.version) if wishes.version else None)
    if source is Source.DEBIAN:
        there = DEBIAN_BRANCHES.get(codename)
        if there is None:
            raise DriverError(f"the driver branch of Debian {codename} is not known; set source to nvidia or local")
        if asked not in (None, there):
            raise DriverError(
                f"Debian {codename} has driver branch {there}, backports included, not {asked}; "
                f'set nvidia_driver.branch = "{there}", or source = "nvidia"'
            )
        return there, ""
    default = UBUNTU_BRANCH if source is Source.UBUNTU else NVIDIA_BRANCH
    return asked or default, "" if asked else f"branch {default} serves every card from Maxwell to Blackwell"


def _supported(branch: str, cards: Sequence[Card], source: Source) -> None:
    """Raise a DriverError if a branch is not for one of the cards, or not for this version of gpurack."""
    for card in cards:
        architecture = _architecture(card)
        last, first = LAST_BRANCH.get(architecture), FIRST_BRANCH.get(architecture, 0)
        if last and last < int(branch_of(MINIMUM)):
            raise DriverError(
                f"{_named(card)}: the last driver for {architecture} is branch {last}, and at least {MINIMUM} is "
                "needed; take the card out, or set nvidia_driver.enabled = False for this host"
            )
        if last and int(branch) > last:
            raise DriverError(
                f"{_named(card)}: driver branch {last} is the last one for {architecture}, not {branch}; "
                + (
                    "put packages of that branch into the directory"
                    if source is Source.LOCAL
                    else f'set nvidia_driver.branch = "{last}"'
                )
            )
        if int(branch) < first:
            cure = {
                Source.DEBIAN: 'set nvidia_driver.source = "nvidia"',
                Source.LOCAL: f"put packages of branch {first} or later into the directory",
            }.get(source, f'set nvidia_driver.branch = "{UBUNTU_BRANCH}"')
            raise DriverError(
                f"{_named(card)}: {architecture} needs driver branch {first} or later, not {branch}; {cure}"
            )
    if int(branch) < int(branch_of(MINIMUM)):
        raise DriverError(f"driver branch {branch} is older than {MINIMUM}; set nvidia_driver.branch to 535 or later")


def _flavour(wishes: Wishes, branch: str, cards: Sequence[Card]) -> tuple[Flavour, list[str]]:
    needs_open = [card for card in cards if _architecture(card).rank >= Architecture.BLACKWELL.rank]
    needs_closed = [card for card in cards if _architecture(card).rank < Architecture.TURING.rank]
    if needs_open and needs_closed:
        raise DriverError(
            f"{_named(needs_open[0])} works only with the open kernel module, {_named(needs_closed[0])} only with the "
            "proprietary one, and a host has one of them; put the cards into different hosts"
        )
    asked = None if wishes.flavour == "auto" else Flavour(wishes.flavour)
    if asked is Flavour.OPEN and needs_closed:
        raise DriverError(
            f'{_named(needs_closed[0])}: the open kernel module begins with Turing; set nvidia_driver.flavour = "auto"'
        )
    if asked is Flavour.PROPRIETARY and needs_open:
        raise DriverError(
            f"{_named(needs_open[0])}: there is no proprietary kernel module from Blackwell on; "
            'set nvidia_driver.flavour = "auto"'
        )
    reasons = [
        f"{_named(card)} is not in the table of cards; it is taken for a newer one"
        for card in cards
        if card.architecture is None
    ]
    if asked:
        return asked, reasons
    if needs_open:
        return Flavour.OPEN, [*reasons, f"{_named(needs_open[0])} works only with the open kernel module"]
    if needs_closed:
        return Flavour.PROPRIETARY, [*reasons, f"{_named(needs_closed[0])} is older than the open kernel module"]
    if int(branch) < OPEN_SINCE_BRANCH:
        why = f"the open kernel module is preferred from branch {OPEN_SINCE_BRANCH} on, and this is branch {branch}"
        return Flavour.PROPRIETARY, [*reasons, why]
    return Flavour.OPEN, [*reasons, "NVIDIA recommends the open kernel module from Turing on"]


def _debian(it: _Decision, reasons: tuple[str, ...]) -> DriverChoice:
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


def _ubuntu(it: _Decision, reasons: tuple[str, ...]) -> DriverChoice:
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


def _nvidia(it: _Decision, reasons: tuple[str, ...]) -> DriverChoice:
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


_MODULES = ("nvidia-kernel-dkms", "nvidia-open-kernel-dkms", "nvidia-kernel-open-dkms")

MODULE_PACKAGE = re.compile(
    r"(?P<open>nvidia-open-kernel-dkms|nvidia-kernel-open-dkms|nvidia-dkms-\d+(-server)?-open)"
    r"|(?P<closed>nvidia-kernel-dkms|nvidia-dkms-\d+(-server)?)"
)
"""Names of packages that hold a kernel module's source, in the archives of Debian, Ubuntu and NVIDIA."""

DRIVER_PACKAGE = re.compile(r"(lib)?nvidia-.*|libcuda1?(-.*)?|firmware-nvidia-gsp")
"""Names of packages that may carry the driver's version."""


def _local_branch(packages: dict[str, str]) -> str:
    modules = {name: version for name, version in packages.items() if MODULE_PACKAGE.fullmatch(name)}
    if not modules:
        raise DriverError(
            "no package with the kernel module (nvidia-kernel-dkms, nvidia-open-kernel-dkms, nvidia-dkms-580, ...) "
            "in nvidia_driver.local_directory"
        )
    return branch_of(next(iter(modules.values())))


def _local(it: _Decision, reasons: tuple[str, ...]) -> DriverChoice:
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


def _only_dkms(it: _Decision) -> None:
    if it.wishes.kernel_module == "prebuilt":
        raise DriverError(
            f"modules that come built are Ubuntu's alone, source is {it.source}; "
            'set nvidia_driver.kernel_module = "dkms"'
        )


def _choice(
    it: _Decision,
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
                *_MODULES,
                f"nvidia-dkms-{it.branch}{it.other_suffix}",
                f"nvidia-dkms-{it.branch}-server{it.other_suffix}",
            )
            if name != module
        ),
        reasons=reasons,
    )


def _architecture(card: Card) -> Architecture:
    """Return a card's architecture; a card that is not in the table is newer than the table."""
    return card.architecture or Architecture.BLACKWELL


def _named(card: Card) -> str:
    return f"{card.name} at {card.address}"
