"""Which driver a host gets: every architecture, source and release; versions, kernels, reboots; facts' parsers."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpurack.gpu.driver import FIRST_BRANCH, LAST_BRANCH, choose
from gpurack.gpu.driver_packages import DriverChoice, Source
from gpurack.gpu.driver_version import MINIMUM, DriverError, branch_of, key, resolve, upstream
from gpurack.gpu.models import Architecture, Card

RELEASES = {"bookworm": "debian", "trixie": "debian", "jammy": "ubuntu", "noble": "ubuntu"}
CODENAMES = ("bookworm", "trixie", "jammy", "noble")
SOURCES = ("auto", "debian", "ubuntu", "nvidia", "local-550", "local-580")


@dataclass(frozen=True)
class Wishes:
    """Settings as far as the choice looks at them."""

    source: str = "auto"
    branch: str | None = None
    version: str | None = None
    flavour: str = "auto"
    backports: bool = False
    kernel_module: str = "dkms"
    local_packages: dict[str, str] = field(default_factory=dict)


def directory(version: str, *more: str) -> dict[str, str]:
    """Return a directory that has both flavours of a version."""
    names = ("nvidia-kernel-dkms", "nvidia-open-kernel-dkms", "libnvidia-ml1", "libcuda1", "nvidia-smi", *more)
    return {**dict.fromkeys(names, f"{version}-1"), "dkms": "3.2.2-1"}


LOCAL = {"local-550": directory("550.163.01"), "local-580": directory("580.95.05")}


def wishes_for(source: str, **more: object) -> Wishes:
    """Return the settings for a column of the table."""
    kind, _, _ = source.partition("-")
    return Wishes(source=kind, local_packages=LOCAL.get(source, {}), **more)  # type: ignore[arg-type]


def card(architecture: Architecture | None, number: int = 1) -> Card:
    """Return a card of an architecture."""
    return Card(address=f"0000:{number:02x}:00.0", device_id="1234", name="Some card", architecture=architecture)


def outcome(architecture: Architecture, source: str, codename: str) -> str:
    """Return source, branch, flavour and the package with the module; or the error."""
    try:
        choice = choose(wishes_for(source), RELEASES[codename], codename, [card(architecture)])
    except DriverError as error:
        return f"error: {error}"
    return f"{choice.source} {choice.branch} {choice.flavour}: {choice.module}"


# One line an outcome; {source: {codename: outcome}} for every class of architectures that behaves alike.
OLD = (Architecture.FERMI, Architecture.KEPLER)
CLOSED = (Architecture.MAXWELL, Architecture.PASCAL, Architecture.VOLTA)
BOTH = (Architecture.TURING, Architecture.AMPERE, Architecture.ADA, Architecture.HOPPER)

NOT_DEBIAN = 'error: this host runs Ubuntu, source is "debian"; set nvidia_driver.source = "ubuntu" or "auto"'
NOT_UBUNTU = 'error: this host runs Debian, source is "ubuntu"; set nvidia_driver.source = "debian" or "auto"'
DEBIAN_12 = "debian 535 proprietary: nvidia-kernel-dkms"
DEBIAN_13 = "debian 550 proprietary: nvidia-kernel-dkms"
UBUNTU = "ubuntu 580 {0}: nvidia-dkms-580-server{1}"
NVIDIA_DEBIAN = "nvidia 580 {0}: nvidia-kernel{1}-dkms"
NVIDIA_UBUNTU = "nvidia 580 {0}: nvidia-dkms-580{1}"


def four(debian_12: str, debian_13: str, ubuntu: str) -> dict[str, str]:
    """Return the outcomes of four releases, of which Ubuntu's are alike."""
    return {"bookworm": debian_12, "trixie": debian_13, "jammy": ubuntu, "noble": ubuntu}


def new_branches(flavour: str, suffix: str) -> dict[str, dict[str, str]]:
    """Return the sources with branch 580."""
    debian = NVIDIA_DEBIAN.format(flavour, suffix)
    return {
        "ubuntu": four(NOT_UBUNTU, NOT_UBUNTU, UBUNTU.format(flavour, suffix)),
        "nvidia": four(debian, debian, NVIDIA_UBUNTU.format(flavour, suffix)),
    }


ALL_LOCAL_CLOSED = "local {0} proprietary: nvidia-kernel-dkms"
TABLE: dict[tuple[Architecture, ...], dict[str, dict[str, str]]] = {
    CLOSED: {
        "auto": four(DEBIAN_12, DEBIAN_13, UBUNTU.format("proprietary", "")),
        "debian": four(DEBIAN_12, DEBIAN_13, NOT_DEBIAN),
        **new_branches("proprietary", ""),
        "local-550": dict.fromkeys(CODENAMES, ALL_LOCAL_CLOSED.format("550")),
        "local-580": dict.fromkeys(CODENAMES, ALL_LOCAL_CLOSED.format("580")),
    },
    BOTH: {
        "auto": four(DEBIAN_12, DEBIAN_13, UBUNTU.format("open", "-open")),
        "debian": four(DEBIAN_12, DEBIAN_13, NOT_DEBIAN),
        **new_branches("open", "-open"),
        "local-550": dict.fromkeys(CODENAMES, ALL_LOCAL_CLOSED.format("550")),
        "local-580": dict.fromkeys(CODENAMES, "local 580 open: nvidia-open-kernel-dkms"),
    },
    (Architecture.BLACKWELL,): {
        "auto": four(
            NVIDIA_DEBIAN.format("open", "-open"),
            NVIDIA_DEBIAN.format("open", "-open"),
            UBUNTU.format("open", "-open"),
        ),
        "debian": four(
            "error: Some card at 0000:01:00.0: Blackwell needs driver branch 570 or later, not 535; "
            'set nvidia_driver.source = "nvidia"',
            "error: Some card at 0000:01:00.0: Blackwell needs driver branch 570 or later, not 550; "
            'set nvidia_driver.source = "nvidia"',
            NOT_DEBIAN,
        ),
        **new_branches("open", "-open"),
        "local-550": dict.fromkeys(
            CODENAMES,
            "error: Some card at 0000:01:00.0: Blackwell needs driver branch 570 or later, not 550; "
            "put packages of branch 570 or later into the directory",
        ),
        "local-580": dict.fromkeys(CODENAMES, "local 580 open: nvidia-open-kernel-dkms"),
    },
}


def expected(architecture: Architecture, source: str, codename: str) -> str:
    """Look the outcome up."""
    if architecture in OLD:
        other = {"debian": "ubuntu", "ubuntu": "debian"}
        if RELEASES[codename] == other.get(source):
            return NOT_DEBIAN if source == "debian" else NOT_UBUNTU
        last = {Architecture.FERMI: 390, Architecture.KEPLER: 470}[architecture]
        return (
            f"error: Some card at 0000:01:00.0: the last driver for {architecture} is branch {last}, and at least "
            "535.86 is needed; take the card out, or set nvidia_driver.enabled = False for this host"
        )
    row = next(row for architectures, row in TABLE.items() if architecture in architectures)
    return row[source][codename]


@pytest.mark.parametrize("codename", CODENAMES)
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("architecture", list(Architecture))
def test_table(architecture: Architecture, source: str, codename: str) -> None:
    assert outcome(architecture, source, codename) == expected(architecture, source, codename)


DEBIAN_USERLAND = (
    *("firmware-nvidia-gsp", "nvidia-smi", "libnvidia-ml1", "libcuda1", "libnvidia-ptxjitcompiler1"),
    *("libnvidia-nvvm4", "libnvidia-cfg1"),
)


@pytest.mark.parametrize(
    ("source", "codename", "packages", "free"),
    [
        (
            "debian",
            "bookworm",
            ("nvidia-kernel-dkms", *DEBIAN_USERLAND),
            ("nvidia-persistenced", "nvidia-modprobe", "python3-pynvml"),
        ),
        (
            "debian",
            "trixie",
            ("nvidia-kernel-dkms", *DEBIAN_USERLAND),
            ("nvidia-persistenced", "nvidia-modprobe", "python3-pynvml"),
        ),
        (
            "ubuntu",
            "noble",
            (
                *("nvidia-dkms-580-server-open", "nvidia-headless-580-server-open", "libnvidia-compute-580-server"),
                *("libnvidia-cfg1-580-server", "nvidia-utils-580-server", "nvidia-compute-utils-580-server"),
            ),
            (),
        ),
        (
            "nvidia",
            "trixie",
            ("nvidia-kernel-open-dkms", "nvidia-driver-cuda", "libnvidia-ml1", "libcuda1", "nvidia-persistenced"),
            ("python3-pynvml",),
        ),
        (
            "nvidia",
            "jammy",
            (
                *("nvidia-dkms-580-open", "nvidia-headless-580-open", "libnvidia-compute-580"),
                *("libnvidia-cfg1-580", "nvidia-utils-580", "nvidia-compute-utils-580"),
            ),
            (),
        ),
        (
            "local-580",
            "noble",
            ("nvidia-open-kernel-dkms", "libnvidia-ml1", "libcuda1", "nvidia-smi"),
            ("dkms",),
        ),
    ],
)
def test_packages(source: str, codename: str, packages: tuple[str, ...], free: tuple[str, ...]) -> None:
    choice = choose(wishes_for(source), RELEASES[codename], codename, [card(Architecture.ADA)])
    assert set(choice.same_version) == set(packages)
    assert set(choice.packages) == {*packages, *free}
    assert choice.held == tuple(name for name in choice.packages if name in packages)
    assert choice.module in choice.packages and choice.module not in choice.unwanted


def test_prebuilt_modules_are_ubuntus() -> None:
    choice = choose(Wishes(kernel_module="prebuilt"), "ubuntu", "noble", [card(Architecture.ADA)], (), "aws")
    assert choice.module == "linux-modules-nvidia-580-server-open-aws"
    assert "nvidia-headless-no-dkms-580-server-open" in choice.packages
    assert not choice.dkms
    for source in ("debian", "nvidia"):
        with pytest.raises(DriverError, match="Ubuntu's alone"):
            choose(wishes_for(source, kernel_module="prebuilt"), "debian", "trixie", [card(Architecture.ADA)])


@pytest.mark.parametrize(
    ("source", "codename", "branch", "package"),
    [
        ("ubuntu", "noble", None, "nvidia-fabricmanager-580"),
        ("nvidia", "noble", None, "nvidia-fabricmanager"),
        ("nvidia", "bookworm", "570", "nvidia-fabricmanager-570"),
        ("auto", "trixie", None, "nvidia-fabricmanager"),
    ],
)
def test_nvswitches_get_a_fabric_manager_of_the_same_version(
    source: str, codename: str, branch: str | None, package: str
) -> None:
    switches = ["0000:05:00.0"]
    choice = choose(
        wishes_for(source, branch=branch), RELEASES[codename], codename, [card(Architecture.HOPPER)], switches
    )
    assert choice.fabric_manager == package
    assert package in choice.same_version


def test_debian_has_no_fabric_manager() -> None:
    with pytest.raises(DriverError, match=r'no fabric manager; set nvidia_driver\.source = "nvidia"'):
        choose(wishes_for("debian"), "debian", "trixie", [card(Architecture.HOPPER)], ["0000:05:00.0"])
    with pytest.raises(DriverError, match=r"put the package nvidia-fabricmanager of version 580\.95\.05 into"):
        choose(wishes_for("local-580"), "debian", "trixie", [card(Architecture.HOPPER)], ["0000:05:00.0"])


@pytest.mark.parametrize(
    ("wishes", "codename", "architectures", "words"),
    [
        (Wishes(), "noble", (Architecture.BLACKWELL, Architecture.PASCAL), "put the cards into different hosts"),
        (Wishes(), "noble", (Architecture.ADA, Architecture.KEPLER), "the last driver for Kepler is branch 470"),
        (Wishes(flavour="open"), "noble", (Architecture.VOLTA,), "the open kernel module begins with Turing"),
        (Wishes(flavour="proprietary"), "noble", (Architecture.BLACKWELL,), "no proprietary kernel module from Blackw"),
        (Wishes(branch="590"), "noble", (Architecture.PASCAL,), "branch 580 is the last one for Pascal, not 590"),
        (Wishes(branch="535"), "noble", (Architecture.BLACKWELL,), "needs driver branch 570 or later, not 535"),
        (Wishes(branch="470"), "noble", (Architecture.ADA,), "branch 470 is older than 535.86"),
        (Wishes("debian", branch="580"), "trixie", (Architecture.ADA,), "Debian trixie has driver branch 550"),
        (Wishes("nvidia", branch="550"), "trixie", (Architecture.ADA,), "from branch 570 on, not for 550"),
        (Wishes("nvidia", branch="590"), "noble", (Architecture.ADA,), "other names from branch 590 on"),
        (Wishes("local"), "noble", (Architecture.ADA,), "no package with the kernel module"),
        (Wishes("local", local_packages=directory("535.54.03")), "noble", (Architecture.ADA,), "older than 535.86"),
        (
            Wishes("local", local_packages={**directory("580.95.05"), "libcuda1": "580.65.06-1"}),
            "noble",
            (Architecture.ADA,),
            "mixes versions: nvidia-open-kernel-dkms 580.95.05, libcuda1 580.65.06-1",
        ),
        (
            Wishes("local", local_packages={"nvidia-kernel-dkms": "580.95.05-1"}),
            "noble",
            (Architecture.BLACKWELL,),
            "needs the open kernel module, and nvidia_driver.local_directory has only nvidia-kernel-dkms",
        ),
    ],
)
def test_refused_with_the_cure(
    wishes: Wishes, codename: str, architectures: tuple[Architecture, ...], words: str
) -> None:
    cards = [card(architecture, number) for number, architecture in enumerate(architectures, 1)]
    with pytest.raises(DriverError, match=words):
        choose(wishes, RELEASES[codename], codename, cards)


def test_mixed_cards_get_the_flavour_that_serves_all() -> None:
    mixed = [card(Architecture.VOLTA, 1), card(Architecture.ADA, 2)]
    assert choose(Wishes(), "ubuntu", "noble", mixed).flavour == "proprietary"
    mixed = [card(Architecture.TURING, 1), card(Architecture.BLACKWELL, 2)]
    assert choose(Wishes(), "debian", "trixie", mixed).flavour == "open"


def test_unknown_card_is_taken_for_a_newer_one_and_said_so() -> None:
    choice = choose(Wishes(), "debian", "trixie", [card(None)])
    assert (choice.source, choice.flavour) == (Source.NVIDIA, "open")
    assert any("not in the table of cards" in reason for reason in choice.reasons)


CARDS = st.lists(st.sampled_from([*Architecture, None]), min_size=1, max_size=8)
WISHES = st.builds(
    lambda column, branch, flavour, module, backports: wishes_for(
        column, branch=branch, flavour=flavour, kernel_module=module, backports=backports
    ),
    st.sampled_from(SOURCES),
    st.sampled_from([None, "470", "535", "550", "570", "580", "590"]),
    st.sampled_from(["auto", "open", "proprietary"]),
    st.sampled_from(["dkms", "prebuilt"]),
    st.booleans(),
)


@given(CARDS, WISHES, st.sampled_from(CODENAMES), st.booleans())
def test_every_choice_serves_every_card_and_every_refusal_says_what_to_do(
    architectures: list[Architecture | None], wishes: Wishes, codename: str, nvswitch: bool
) -> None:
    cards = [card(architecture, number) for number, architecture in enumerate(architectures, 1)]
    try:
        choice = choose(wishes, RELEASES[codename], codename, cards, ["0000:ff:00.0"] if nvswitch else [])
    except DriverError as error:
        assert any(word in str(error) for word in (" set ", "put ", "add ", "take "))
        return
    serves(choice, architectures)
    assert bool(choice.fabric_manager) == nvswitch
    assert key(f"{choice.branch}.999") > key(MINIMUM)
    assert set(choice.same_version) <= set(choice.packages)
    assert len(set(choice.packages)) == len(choice.packages)
    assert not set(choice.unwanted) & set(choice.packages)


def serves(choice: DriverChoice, architectures: list[Architecture | None]) -> None:
    """Assert that branch and flavour are for all cards."""
    for architecture in architectures:
        known = architecture or Architecture.BLACKWELL
        assert FIRST_BRANCH.get(known, 0) <= int(choice.branch) <= LAST_BRANCH.get(known, 999)
        if known.rank >= Architecture.BLACKWELL.rank:
            assert choice.flavour == "open"
        if known.rank < Architecture.TURING.rank:
            assert choice.flavour == "proprietary"


@pytest.mark.parametrize(
    ("package", "version"),
    [
        ("550.163.01-2", "550.163.01"),
        ("550.163.01-4~bpo13+1", "550.163.01"),
        ("535.309.01-0+deb12u1", "535.309.01"),
        ("580.95.05-0ubuntu0.24.04.1", "580.95.05"),
        ("2:580.95.05-1", "580.95.05"),
        ("6.8.0-64.67+1", ""),
        ("1.17.8-1", ""),
        ("", ""),
    ],
)
def test_nvidias_version_of_a_package(package: str, version: str) -> None:
    assert upstream(package) == version


BOOKWORM = {
    "nvidia-open-kernel-dkms": ("535.261.03-1",),
    "nvidia-kernel-dkms": ("535.309.01-0+deb12u1", "535.261.03-1"),
    "libcuda1": ("535.309.01-0+deb12u1", "535.261.03-1"),
}


def test_newest_version_that_all_packages_have() -> None:
    assert resolve(BOOKWORM, ["nvidia-kernel-dkms", "libcuda1"], branch="535") == "535.309.01"
    assert resolve(BOOKWORM, ["nvidia-open-kernel-dkms", "libcuda1"], branch="535") == "535.261.03"


def test_installed_version_is_kept_until_told_otherwise() -> None:
    packages = ["nvidia-kernel-dkms", "libcuda1"]
    old = dict.fromkeys(packages, "535.261.03-1")
    assert resolve(BOOKWORM, packages, branch="535", installed=old) == "535.261.03"
    assert resolve(BOOKWORM, packages, branch="535", installed={packages[0]: old[packages[0]]}) == "535.261.03"
    assert resolve(BOOKWORM, packages, branch="535", installed=old, upgrade=True) == "535.309.01"
    assert resolve(BOOKWORM, packages, branch="535", installed=old, version="535.309.01") == "535.309.01"
    too_old = dict.fromkeys(packages, "535.54.03-1")
    assert resolve(BOOKWORM, packages, branch="535", installed=too_old) == "535.309.01"
    of_another = dict.fromkeys(packages, "525.147.05-1")
    assert resolve(BOOKWORM, packages, branch="535", installed=of_another) == "535.309.01"


@pytest.mark.parametrize(
    ("available", "options", "words"),
    [
        ({}, {"branch": "535"}, "no package source has a, b; check nvidia_driver.source, and that base.components"),
        ({"a": ("535.54.03-1",), "b": ("535.54.03-1",)}, {"branch": "535"}, "version 535.54.03, older than 535.86"),
        ({"a": ("550.1-1",), "b": ("550.1-1",)}, {"branch": "535"}, "no driver of branch 535; they have 550.1"),
        ({"a": ("535.99-1",), "b": ("535.98-1",)}, {"branch": "535"}, "no version is there of all packages"),
        ({"a": ("535.99-1",), "b": ("535.99-1",)}, {"branch": "535", "version": "535.98"}, "no driver 535.98"),
        ({"a": ("535.54-1",), "b": ("535.54-1",)}, {"branch": "535", "version": "535.54"}, "older than 535.86"),
    ],
)
def test_no_fit_version(available: dict[str, tuple[str, ...]], options: dict[str, str], words: str) -> None:
    with pytest.raises(DriverError, match=words):
        resolve(available, ["a", "b"], **options)  # type: ignore[arg-type]


VERSIONS = st.builds(
    lambda a, b, c: f"{a}.{b}.{c:02d}-1", st.sampled_from([470, 535, 550, 580]), st.integers(0, 300), st.integers(0, 9)
)


@given(
    st.dictionaries(st.sampled_from("abc"), st.lists(VERSIONS, max_size=5).map(tuple)),
    st.dictionaries(st.sampled_from("abc"), VERSIONS),
    st.sampled_from(["470", "535", "550", "580"]),
    st.booleans(),
)
def test_resolved_version_can_be_had_of_every_package(
    available: dict[str, tuple[str, ...]], installed: dict[str, str], branch: str, upgrade: bool
) -> None:
    try:
        version = resolve(available, list("abc"), branch=branch, installed=installed, upgrade=upgrade)
    except DriverError:
        return
    assert branch_of(version) == branch
    assert key(version) >= key(MINIMUM)
    for name in "abc":
        assert version in {upstream(text) for text in (*available.get(name, ()), installed.get(name, ""))}
