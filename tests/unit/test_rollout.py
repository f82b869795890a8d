"""Staged roll-out: the order of hosts, what an answer of Ollama's API says, and what is measured against the limits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyinfra.api.inventory import Inventory

from gpurack.facts.answer import MARK, Capabilities, Completion, Embedding, Loaded
from gpurack.rollout.acceptance import Acceptance, Answer, Trial
from gpurack.rollout.run import RolloutError, stages_of

LIMITS = Acceptance.model_validate({})


def inventory(*names: str, canary: tuple[str, ...] = ()) -> Inventory:
    groups = {"canary": (list(canary), {})} if canary else {}
    return Inventory(([(name, {}) for name in names], {}), **groups)


def printed(*objects: Any, status: int = 200, first: float = 0.05, total: float = 0.5) -> list[str]:
    return [*(json.dumps(item) for item in objects), "", f"{MARK} {status} {first} {total}"]


def stream(*tokens: str, count: int = 10, nanoseconds: int = 500_000_000) -> list[dict[str, Any]]:
    last = {"response": "", "done": True, "eval_count": count, "eval_duration": nanoseconds}
    return [*({"response": token, "done": False} for token in tokens), last]


def test_first_host_is_the_canary_where_none_is_named() -> None:
    stages = stages_of(inventory("a", "b", "c"))
    assert [stage.hosts for stage in stages] == [("a",), ("b",), ("c",)]
    assert [stage.title for stage in stages] == ["canary", "stage 2", "stage 3"]


def test_group_and_option_name_the_canary() -> None:
    assert stages_of(inventory("a", "b", "c", canary=("b",)))[0].hosts == ("b",)
    assert [stage.hosts for stage in stages_of(inventory("a", "b", "c"), canary=["c"], serial=2)] == [
        ("c",),
        ("a", "b"),
    ]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"canary": ["x"]}, "no host x in the inventory; there are a, b"),
        ({"limit": ["y"]}, "no host y"),
        ({"canary": ["a"], "limit": ["b"]}, "canary a is not among the hosts of --limit"),
    ],
)
def test_wrong_names_are_told(options: dict[str, list[str]], told: str) -> None:
    with pytest.raises(RolloutError, match=told):
        stages_of(inventory("a", "b"), **options)


@given(number=st.integers(1, 30), serial=st.integers(1, 40), data=st.data())
def test_every_host_is_in_exactly_one_stage(number: int, serial: int, data: st.DataObject) -> None:
    names = [f"h{index}" for index in range(number)]
    limit = data.draw(st.lists(st.sampled_from(names), unique=True))
    stages = stages_of(inventory(*names), limit=limit, serial=serial)
    hosts = [name for stage in stages for name in stage.hosts]
    assert sorted(hosts) == sorted(limit or names)
    assert len(stages[0].hosts) == 1 and all(1 <= len(stage.hosts) <= serial for stage in stages[1:])


def test_streamed_answer_is_read() -> None:
    answer = Completion().process(printed(*stream("A ", "server.")))
    assert (answer.status, answer.first_token_ms, answer.text, answer.error) == (200, 50.0, "A server.", "")
    assert answer.tokens_per_second == pytest.approx(20)


def test_thinking_counts_as_an_answer() -> None:
    parts = [{"response": "", "thinking": "Hm.", "done": False}, *stream()]
    assert Completion().process(printed(*parts)).error == ""


@pytest.mark.parametrize(
    ("output", "told"),
    [
        (printed({"error": "model 'x' not found"}, status=404), "HTTP 404: model 'x' not found"),
        (["curl: (7) Failed to connect", f"{MARK} 000 0.0 0.0"], "no answer: curl: (7) Failed to connect"),
        (["<html>bad gateway</html>", f"{MARK} 502 0.1 0.1"], "HTTP 502: <html>bad gateway</html>"),
        (
            [json.dumps({"response": "A", "done": False}), "curl: (18) cut", f"{MARK} 200 0.1 0.1"],
            "cut off: curl: (18)",
        ),
        (printed({"response": "A", "done": False}), "the stream ended before the answer did"),
        (printed(*stream()), "the answer is empty"),
        (printed({"response": "A", "done": False}, {"error": "llama runner terminated"}), "llama runner terminated"),
        ([], "no answer: the server said nothing"),
    ],
)
def test_what_is_no_answer_says_why(output: list[str], told: str) -> None:
    assert told in Completion().process(output).error


def test_loading_is_timed_to_its_end() -> None:
    assert Loaded().process(printed({"done": True, "response": ""}, total=12.5)).first_token_ms == 12500


def test_embedding_must_say_something() -> None:
    assert Embedding().process(printed({"embeddings": [[0.1, 0.2]]})).text == "2 dimensions"
    for wrong in ({"embeddings": [[0.0, 0.0]]}, {"embeddings": [[]]}, {"embeddings": []}, {}):
        assert Embedding().process(printed(wrong)).error


def test_capabilities_are_read() -> None:
    assert Capabilities().process(printed({"capabilities": ["embedding"]})) == ("embedding",)
    assert Capabilities().process(printed({"error": "not found"}, status=404)) == ()


@given(st.lists(st.text(max_size=60), max_size=8))
def test_nothing_a_server_says_breaks_the_reader(output: list[str]) -> None:
    for fact in (Completion(), Loaded(), Embedding()):
        assert isinstance(fact.process(output), Answer)
    assert isinstance(Capabilities().process(output), tuple)


def test_limits_are_compared_with_medians() -> None:
    slow, fast = Answer(200, 900, 2.0, "A"), Answer(200, 50, 40.0, "A")
    assert list(Trial("a", "m", (slow, fast, fast)).failures(LIMITS)) == []
    told = list(Trial("a", "m", (slow, slow, fast)).failures(LIMITS))
    assert told == [
        "m: first token after 900 ms, the limit is 200 ms",
        "m: 2.0 tokens a second, the limit is 5",
    ]


def test_one_answer_that_fails_is_enough() -> None:
    fast = Answer(200, 50, 40.0, "A")
    trial = Trial("a", "m", (fast, Answer(500, error="HTTP 500: out of memory"), fast))
    assert list(trial.failures(LIMITS)) == ["m: answer 2 of 3: HTTP 500: out of memory"]
    assert list(Trial("a", "m", ()).failures(LIMITS)) == ["m: was not asked"]


def test_commands_hold_their_question_whatever_is_in_it(tmp_path: Path) -> None:
    command = Completion().command(url="http://127.0.0.1:1", model="m", prompt='it\'s "$(id)" `id`')
    assert '"it\'"\'"\'s \\"$(id)\\" `id`"' in command
