"""Tests, findings, and their order: what explains what, so that the cause is named before its consequences."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from importlib import import_module
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict

from gpurack.controls import Severity
from gpurack.doctor.evidence import Evidence

ErrorName = Literal["ERR_GPU", "OOM", "TIMEOUT"]
"""The three classic errors, by the names users report them under: old driver, out of memory, no answer."""

NOT_APPLICABLE: Literal["not applicable"] = "not applicable"

CHAPTERS = ("host", "driver", "devices", "health", "containers", "service")
"""Modules in ``gpurack.doctor.rules``, from the bottom up; the order of the tests."""


class Finding(BaseModel):
    """One thing that is wrong.

    Attributes:
        id: of the test that found it.
        title: what is wrong, in one sentence.
        severity: what it costs.
        error: the classic error it is, if it is one.
        seen: the evidence, line by line.
        why: why it matters.
        cure: the command or setting that cures it.
        explained_by: ids of the findings it is a consequence of; empty for a cause.
    """

    model_config = ConfigDict(frozen=True)

    id: str
    title: str
    severity: Severity
    error: ErrorName | None = None
    seen: tuple[str, ...] = ()
    why: str = ""
    cure: str = ""
    explained_by: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sign:
    """What a test saw and what cures it; fields left out are the test's own."""

    seen: tuple[str, ...] | list[str]
    cure: str
    title: str = ""
    severity: Severity | None = None
    error: ErrorName | None = None


Look = Callable[[Evidence], Sign | Literal["not applicable"] | None]


@dataclass(frozen=True)
class Test:
    """One test: a pure function of the evidence, and what its finding accounts for.

    Attributes:
        id: stable identifier, such as ``nouveau-loaded``.
        title: what is wrong when it finds something.
        chapter: one of :data:`CHAPTERS`.
        severity: of its finding, unless the function says otherwise.
        error: the classic error its finding is, unless the function says otherwise.
        needs: what the host must be for the test to apply: ``gpu``, ``docker``, ``ollama``.
        explains: ids of later tests whose findings are consequences of this one's; ``@driver`` stands for all later
            tests of that chapter.
        look: the function; its docstring is the reason why it matters.
    """

    __test__ = False  # not one of pytest's

    id: str
    title: str
    chapter: str
    severity: Severity
    error: ErrorName | None
    needs: tuple[str, ...]
    explains: tuple[str, ...]
    look: Look

    def run(self, evidence: Evidence) -> Finding | Literal["not applicable"] | None:
        """Return the finding; None when there is nothing wrong."""
        applies = {
            "gpu": evidence.gpu_expected,
            "docker": evidence.expected.docker,
            "ollama": evidence.expected.ollama,
        }
        if not all(applies[need] for need in self.needs):
            return NOT_APPLICABLE
        sign = self.look(evidence)
        if not isinstance(sign, Sign):
            return sign
        return Finding(
            id=self.id,
            title=sign.title or self.title,
            severity=sign.severity or self.severity,
            error=sign.error or self.error,
            seen=tuple(sign.seen),
            why=" ".join((inspect.getdoc(self.look) or self.title).split()),
            cure=sign.cure,
        )


def test(
    id: str,
    title: str,
    *,
    severity: Severity = "high",
    error: ErrorName | None = None,
    needs: tuple[str, ...] = (),
    explains: tuple[str, ...] = (),
) -> Callable[[Look], Test]:
    """Turn a function of the evidence into a test; the tests of a module are run in the order they are written."""

    def mark(look: Look) -> Test:
        chapter = look.__module__.rpartition(".")[2]
        return Test(id, title, chapter, severity, error, needs, explains, look)

    return mark


test.__test__ = False  # type: ignore[attr-defined]


def all_tests() -> list[Test]:
    """Return every test in order: from the PCI bus to the model's answer."""
    modules = [import_module(f"gpurack.doctor.rules.{chapter}") for chapter in CHAPTERS]
    return [value for module in modules for value in vars(module).values() if isinstance(value, Test)]


def explained(item: Test, tests: list[Test]) -> set[str]:
    """Return the ids of all tests whose findings a test's finding accounts for."""
    later = tests[tests.index(item) + 1 :]
    return {other.id for other in later if other.id in item.explains or f"@{other.chapter}" in item.explains}


class Outcome(StrEnum):
    """What came of one test."""

    OK = "ok"
    FINDING = "finding"
    NOT_APPLICABLE = "not applicable"


class Diagnosis(BaseModel):
    """What the tests make of a host's evidence.

    Attributes:
        findings: causes first, the gravest first among them, then their consequences in the tests' order.
        outcomes: test id -> outcome, in the tests' order.
    """

    findings: tuple[Finding, ...] = ()
    outcomes: dict[str, Outcome] = {}

    @property
    def causes(self) -> list[Finding]:
        """Findings that nothing else accounts for."""
        return [finding for finding in self.findings if not finding.explained_by]

    @property
    def consequences(self) -> list[Finding]:
        """Findings that a cause accounts for."""
        return [finding for finding in self.findings if finding.explained_by]


def diagnose(evidence: Evidence) -> Diagnosis:
    """Run all tests on a host's evidence and put what they find in order."""
    tests = all_tests()
    found: dict[str, Finding] = {}
    outcomes = {}
    for item in tests:
        answer = item.run(evidence)
        if isinstance(answer, Finding):
            found[item.id] = answer
            outcomes[item.id] = Outcome.FINDING
        else:
            outcomes[item.id] = Outcome.OK if answer is None else Outcome.NOT_APPLICABLE
    accounts = {item.id: explained(item, tests) for item in tests if item.id in found}
    findings = [
        finding.model_copy(update={"explained_by": tuple(id for id, items in accounts.items() if finding.id in items)})
        for finding in found.values()
    ]
    return Diagnosis(findings=tuple(_ordered(findings)), outcomes=outcomes)


def _ordered(findings: Iterable[Finding]) -> list[Finding]:
    grades = list(get_args(Severity))
    # sorted() keeps the tests' order among equals: of two causes as grave, the lower in the stack is first.
    return sorted(
        findings, key=lambda item: (bool(item.explained_by), 0 if item.explained_by else -grades.index(item.severity))
    )
