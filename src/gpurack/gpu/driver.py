"""Which NVIDIA driver a host gets: packages, module flavour and where they come from, or why there is none.

Pure decisions over what is known before anything is installed. Package names are in
:mod:`gpurack.gpu.driver_packages`; which version of the packages is then taken is decided
in :mod:`gpurack.gpu.driver_version`, once the package manager has said what it offers.

Facts and their sources:

- Branches and architectures: NVIDIA's "CUDA GPU support by driver" notes. 470 is the last branch for Kepler, 390 for
  Fermi, 580 for Maxwell, Pascal and Volta; 570 is the first for Blackwell.
- Flavours: NVIDIA's driver installation guide, "Kernel modules". Open modules know Turing and later, proprietary ones
  everything before Blackwell; open is recommended from branch 560 on, wherever it works.
"""

from __future__ import annotations

from collections.abc import Sequence

from gpurack.gpu import driver_packages
from gpurack.gpu.driver_packages import (
    MODULE_PACKAGE,
    NVIDIA_BRANCH,
    Decision,
    DriverChoice,
    Flavour,
    Source,
    Wishes,
)
from gpurack.gpu.driver_version import MINIMUM, DriverError, branch_of
from gpurack.gpu.models import Architecture, Card

DEBIAN_BRANCHES = {"bookworm": "535", "trixie": "550"}
"""The one branch of each Debian release; backports have never had another one."""

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
        Source.DEBIAN: driver_packages.debian,
        Source.UBUNTU: driver_packages.ubuntu,
        Source.NVIDIA: driver_packages.nvidia,
        Source.LOCAL: driver_packages.local,
    }[source]
    return choice(
        Decision(wishes, distribution, codename, source, branch, flavour, bool(nvswitches), kernel_flavour),
        tuple(reason for reason in (why, why_branch, *why_flavour) if reason),
    )


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
    asked = _asked(wishes)
    if branch and asked not in (None, branch) and not wishes.backports:
        return Source.NVIDIA, f"Debian's branch is {branch}, not {asked}: NVIDIA's repository is used"
    for card in cards:
        if branch and int(branch) < FIRST_BRANCH.get(_architecture(card), 0):
            return Source.NVIDIA, f"Debian's branch {branch} is too old for {_named(card)}: NVIDIA's repository is used"
    return Source.DEBIAN, ""


def _asked(wishes: Wishes) -> str | None:
    return wishes.branch or (branch_of(wishes.version) if wishes.version else None)


def _branch(wishes: Wishes, source: Source, codename: str) -> tuple[str, str]:
    if source is Source.LOCAL:
        return _local_branch(wishes.local_packages), ""
    asked = _asked(wishes)
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
    return (
        asked or NVIDIA_BRANCH,
        "" if asked else f"branch {NVIDIA_BRANCH} serves every card from Maxwell to Blackwell",
    )


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
            }.get(source, f'set nvidia_driver.branch = "{NVIDIA_BRANCH}"')
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


def _local_branch(packages: dict[str, str]) -> str:
    modules = {name: version for name, version in packages.items() if MODULE_PACKAGE.fullmatch(name)}
    if not modules:
        raise DriverError(
            "no package with the kernel module (nvidia-kernel-dkms, nvidia-open-kernel-dkms, nvidia-dkms-580, ...) "
            "in nvidia_driver.local_directory"
        )
    return branch_of(next(iter(modules.values())))


def _architecture(card: Card) -> Architecture:
    """Return a card's architecture; a card that is not in the table is newer than the table."""
    return card.architecture or Architecture.BLACKWELL


def _named(card: Card) -> str:
    return f"{card.name} at {card.address}"
