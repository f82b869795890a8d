"""MIG: profiles, places, nvidia-smi's answers, plans."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from gpurack.facts.mig import QUERIES, MigStates
from gpurack.gpu.cards import lookup
from gpurack.gpu.mig import (
    FAMILIES,
    MigError,
    Placement,
    Profile,
    counted,
    known_profiles,
    parse_instances,
    parse_profiles,
    place,
)
from gpurack.gpu.mig_plan import Divided, check_cards, layout_of, plans
from gpurack.gpu.models import Card
from gpurack.operations.mig import unit_of
from roles.mig.settings import MigLayout, MigSettings

H100 = known_profiles("2330")
A30 = known_profiles("20b7")
UUID = "GPU-00000000-1111-2222-3333-444455556666"


def gpu(**change: Any) -> Divided:
    """Return an H100, MIG off."""
    fields = {"index": 0, "uuid": UUID, "device_id": "2330", "name": "NVIDIA H100", "mode": "Disabled"}
    return Divided(**{**fields, **change})


def layout(name: str = "all", **profiles: int) -> MigLayout:
    """Return a layout; ``g3_40`` stands for ``3g.40gb``."""
    return MigLayout(gpu=name, profiles={f"{key[1]}g.{key[3:]}gb": number for key, number in profiles.items()})


@pytest.mark.parametrize("device_id", sorted(set().union(*(family.devices for family in FAMILIES))))
def test_table_names_cards_of_the_card_table(device_id: str) -> None:
    assert lookup(device_id) is not None
    names = [profile.name for profile in known_profiles(device_id)]
    assert len(set(names)) == len(names) >= 5


def test_profiles_of_an_a100_40gb() -> None:
    names = [profile.name for profile in known_profiles("20b0")]
    assert names == ["1g.5gb", "1g.5gb+me", "1g.10gb", "2g.10gb", "3g.20gb", "4g.20gb", "7g.40gb"]
    assert known_profiles("2684") == ()


@pytest.mark.parametrize(
    ("wanted", "places"),
    [
        ({"3g.40gb": 2}, "3g.40gb:0 3g.40gb:4"),
        ({"3g.40gb": 1, "4g.40gb": 1}, "4g.40gb:0 3g.40gb:4"),
        ({"1g.10gb": 2, "2g.20gb": 1, "3g.40gb": 1}, "1g.10gb:0 1g.10gb:1 2g.20gb:2 3g.40gb:4"),
        ({"1g.20gb": 4}, "1g.20gb:0 1g.20gb:2 1g.20gb:4 1g.20gb:6"),
        ({"2g.20gb": 3, "1g.10gb": 1}, "2g.20gb:0 2g.20gb:2 2g.20gb:4 1g.10gb:6"),
        ({"7g.80gb": 1}, "7g.80gb:0"),
        ({}, ""),
    ],
)
def test_places(wanted: dict[str, int], places: str) -> None:
    assert " ".join(map(str, place(H100, wanted))) == places


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"9g.80gb": 1}, "no profile 9g.80gb on this GPU; it has 1g.10gb, 1g.10gb[+]me"),
        ({"3g.40gb": 3}, "3 of 3g.40gb do not fit on one GPU: they take 9 of 7 compute and 12 of 8 memory slices"),
        ({"4g.40gb": 2}, "may start at some slices only"),
        ({"1g.10gb+me": 2}, "1 at most"),
        ({"7g.80gb": 1, "1g.10gb": 1}, "do not fit"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_reason(wanted: dict[str, int], words: str) -> None:
    with pytest.raises(MigError, match=words):
        place(H100, wanted)


counts = st.dictionaries(st.sampled_from([profile.name for profile in (*H100, *A30)]), st.integers(1, 7), max_size=4)


@given(counts, st.sampled_from([H100, A30]))
def test_places_are_allowed_and_apart(wanted: dict[str, int], profiles: tuple[Profile, ...]) -> None:
    by_name = {profile.name: profile for profile in profiles}
    try:
        placed = place(profiles, wanted)
    except MigError:
        return
    assert counted(placed) == {name: wanted[name] for name in sorted(wanted)}
    taken: list[int] = []
    for item in placed:
        assert item.start in by_name[item.profile].starts
        taken.extend(range(item.start, item.start + by_name[item.profile].size))
    memory = max(profile.size for profile in profiles)
    assert len(taken) == len(set(taken)) and set(taken) <= set(range(memory))
    assert sum(by_name[item.profile].compute for item in placed) <= (7 if memory == 8 else 4)


@given(st.lists(st.sampled_from(H100), min_size=1, max_size=4))
def test_nothing_that_fits_is_refused(profiles: list[Profile]) -> None:
    """Against every way there is to place them."""

    def apart(starts: tuple[int, ...]) -> bool:
        taken = [slot for start, p in zip(starts, profiles, strict=True) for slot in range(start, start + p.size)]
        return len(taken) == len(set(taken))

    fits = any(apart(starts) for starts in product(*(profile.starts for profile in profiles)))
    names = [profile.name for profile in profiles]
    wanted = {name: names.count(name) for name in names}
    allowed = wanted.get("1g.10gb+me", 0) <= 1
    try:
        place(H100, wanted)
    except MigError:
        assert not (fits and allowed)
    else:
        assert fits and allowed


# Of NVIDIA's MIG user guide and of an H100.
LGI = """\
+-------------------------------------------------------+
| GPU instances:                                        |
| GPU   Name             Profile  Instance   Placement  |
|                          ID       ID       Start:Size |
|=======================================================|
|   0  MIG 1g.5gb          19        9          2:1     |
+-------------------------------------------------------+
|   0  MIG 1g.5gb+me       20       10          3:1     |
+-------------------------------------------------------+
|   1  MIG 3g.20gb          9        2          4:4     |
+-------------------------------------------------------+
"""
LGIP = """\
| GPU   Name             ID    Instances   Memory     P2P    SM    DEC   ENC  |
|                              Free/Total   GiB              CE    JPEG  OFA  |
|=============================================================================|
|   0  MIG 1g.5gb        19     7/7        4.75       No     14     0     0   |
|                                                             1     0     0   |
+-----------------------------------------------------------------------------+
|   0  MIG 1g.5gb+me     20     1/1        4.75       No     14     1     0   |
|                                                             1     1     1   |
+-----------------------------------------------------------------------------+
|   0  MIG 4g.20gb        5     1/1        19.62      No     56     2     0   |
"""
LGIPP = """\
GPU  0 Profile ID 19 Placements: {0,1,2,3,4,5,6}:1
GPU  0 Profile ID 20 Placements: {0,1,2,3,4,5,6}:1
GPU  0 Profile ID  5 Placement : {0}:4
"""


def test_instances_that_nvidia_smi_lists() -> None:
    assert parse_instances(LGI.splitlines()) == {
        0: (Placement(2, "1g.5gb"), Placement(3, "1g.5gb+me")),
        1: (Placement(4, "3g.20gb"),),
    }
    assert parse_instances(["No GPU instances found: Not Found"]) == {}


def test_profiles_that_nvidia_smi_lists() -> None:
    seven = tuple(range(7))
    assert parse_profiles(LGIP.splitlines(), LGIPP.splitlines()) == {
        0: (Profile("1g.5gb", seven, 1), Profile("1g.5gb+me", seven, 1, 1), Profile("4g.20gb", (0,), 4))
    }
    assert parse_profiles(LGIP.splitlines(), ["No MIG-enabled devices found."]) == {}


@given(st.lists(st.text(max_size=90)))
def test_no_text_breaks_the_parsers(lines: list[str]) -> None:
    parse_instances(lines)
    parse_profiles(lines, lines)
    state = MigStates().process([f"{mark} {line}" for mark in QUERIES for line in lines])
    assert state.error or state.gpus


def test_state_of_a_divided_gpu() -> None:
    answer = {
        "gpus": [f"0, {UUID}, 0x233010DE, Enabled, NVIDIA H100 80GB HBM3", "1, GPU-ab, 0x268410DE, [N/A], RTX, 4090"],
        "devices": [
            f"GPU 0: NVIDIA H100 80GB HBM3 (UUID: {UUID})",
            "  MIG 3g.40gb     Device  0: (UUID: MIG-c7384736-a75d-5afc-978f-d2f1294409fd)",
            "GPU 1: RTX, 4090 (UUID: GPU-ab)",
        ],
        "instances": ["|   0  MIG 3g.40gb          9        2          4:4     |"],
        "profiles": ["No MIG-supported devices found."],
        "places": [],
        "processes": ["MIG-c7384736-a75d-5afc-978f-d2f1294409fd, 12, /bin/a, b", f"{UUID}, 13, c", "GPU-ab, 14, d"],
    }
    state = MigStates().process([f"{mark} {line}" for mark, lines in answer.items() for line in lines])
    first, second = state.gpus
    assert first == gpu(
        name="NVIDIA H100 80GB HBM3",
        mode="Enabled",
        instances=(Placement(4, "3g.40gb"),),
        devices=("MIG-c7384736-a75d-5afc-978f-d2f1294409fd",),
        processes=("/bin/a, b (12)", "c (13)"),
    )
    assert (second.name, second.has_mig, second.processes) == ("RTX, 4090", False, ("d (14)",))
    assert MigStates().process(["gpus No devices were found"]).error == "No devices were found"
    assert MigStates.default().error == "nvidia-smi is not installed"


def test_own_layout_counts_more_than_that_of_all() -> None:
    layouts = [layout(g3_40=2), layout("1", g7_80=1)]
    assert layout_of(layouts, "0", "GPU-x") is layouts[0]
    assert layout_of(layouts, "1", "GPU-y") is layouts[1]
    assert layout_of(layouts[1:], "0") is None


def test_plan_of_a_bare_gpu() -> None:
    [plan] = plans([gpu()], [layout(g3_40=2)])
    assert not plan.in_place
    mode, create = plan.commands
    assert mode.startswith(f"nvidia-smi -i {UUID} -mig 1 && ")
    assert create == f"nvidia-smi mig -i {UUID} -cgi 3g.40gb:0,3g.40gb:4 -C"
    assert "ExecStart=/usr/bin/nvidia-smi -i " + UUID + " -mig 1\n" in unit_of([plan])
    assert "'" not in create


def test_plan_of_a_divided_gpu() -> None:
    halves = (Placement(0, "3g.40gb"), Placement(4, "3g.40gb"))
    divided = gpu(mode="Enabled", instances=halves, devices=("MIG-1", "MIG-2"))
    assert plans([divided], [layout(g3_40=2)])[0].in_place
    [unusable] = plans([gpu(mode="Enabled", instances=halves)], [layout(g3_40=2)])
    assert not unusable.in_place and "0 usable devices" in unusable.difference
    [other] = plans([divided], [layout(g7_80=1)])
    assert [command.split(" -i ")[0] for command in other.commands] == ["nvidia-smi mig", "nvidia-smi mig"]
    [off] = plans([divided], [layout()])
    assert "-dgi" in off.commands[0] and f"-i {UUID} -mig 0" in off.commands[1]
    assert off.difference.endswith("wanted is MIG off")
    assert plans([gpu()], [layout()])[0].in_place and plans([gpu(mode="[N/A]")], [layout()])[0].in_place


@pytest.mark.parametrize(
    ("gpus", "layouts", "words"),
    [
        ([gpu()], [layout("3", g3_40=2)], "layouts name GPU 3, and this host's GPUs are 0 = GPU-0000"),
        ([gpu(mode="[N/A]")], [layout(g3_40=2)], "has no MIG"),
        ([gpu()], [layout(g3_20=2)], "GPU 0 .NVIDIA H100.: there is no profile 3g.20gb"),
        ([gpu(device_id="ffff")], [layout(g3_40=2)], "not in gpurack's table.*nvidia-smi -i 0 -mig 1"),
        ([gpu(processes=("ollama (7)",))], [layout(g3_40=2)], "in use by ollama .7.: stop that first"),
    ],
)
def test_plans_that_cannot_be_are_refused_with_a_reason(gpus: list[Divided], layouts: list[Any], words: str) -> None:
    with pytest.raises(MigError, match=words):
        plans(gpus, layouts)


def test_card_that_is_not_in_the_table_is_known_by_nvidia_smi() -> None:
    offered = (Profile("2g.99gb", (0, 2), 2), Profile("4g.198gb", (0,), 4))
    unknown = gpu(device_id="ffff", mode="Enabled", profiles=offered)
    assert plans([unknown], [layout(g2_99=2)])[0].wanted == (Placement(0, "2g.99gb"), Placement(2, "2g.99gb"))


def test_cards_are_checked_before_a_driver_is_there() -> None:
    cards = [Card(address="0000:01:00.0", device_id="2330", name="H100"), Card(address="b", device_id="2684", name="x")]
    check_cards(cards, [layout(g3_40=2)])
    with pytest.raises(MigError, match=r"GPU 0 \(H100\): there is no profile 3g.20gb"):
        check_cards(cards, [layout(g3_20=2)])


@pytest.mark.parametrize(
    ("layouts", "words"),
    [
        ([{"gpu": "0", "profiles": {"3g": 1}}], "match pattern"),
        ([{"gpu": "first"}], "match pattern"),
        ([{"gpu": True}], "valid string"),
        ([{"gpu": 0}, {"gpu": "0"}], "GPU 0 is there more than once"),
        ([{"gpu": 0, "profiles": {"1g.10gb": 8}}], "less than or equal to 7"),
        ([{"gpu": 0, "profiles": {"1g.10gb": 0}}], "greater than or equal to 1"),
    ],
)
def test_wrong_settings_are_refused_with_a_reason(layouts: list[Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        MigSettings(layouts=layouts)
