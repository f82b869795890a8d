"""Controls: a role's testinfra checks with an identity, so that a test, a report and an auditor can name them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from importlib import import_module
from typing import Any, Literal

Severity = Literal["low", "medium", "high", "critical"]
Check = Callable[..., None]


class NotApplicable(Exception):  # noqa: N818 - an outcome of a check, not a fault
    """Raised by a check that has nothing to say about this host; the message says why."""


class Status(StrEnum):
    """Outcome of one control on one host."""

    PASS = "pass"  # noqa: S105 - an outcome, not a password
    FAIL = "fail"
    NOT_APPLICABLE = "not applicable"
    ERROR = "error"
    """The check itself could not be carried out; never counted as a pass."""


@dataclass(frozen=True)
class Control:
    """One thing that must hold on a host.

    Attributes:
        id: stable identifier, role prefix and number, such as ``DOCK-02``.
        title: the wanted state in one sentence.
        severity: what its absence costs.
        satisfies: requirements of standards it serves, such as ``ISO 27001 A.8.15``.
        check: ``check(host, settings)``; raises AssertionError when the state is not the wanted one.
    """

    id: str
    title: str
    severity: Severity
    satisfies: tuple[str, ...]
    check: Check

    @property
    def why(self) -> str:
        """The reason for the control: the check's docstring."""
        return inspect.getdoc(self.check) or self.title


@dataclass(frozen=True)
class Result:
    """What one control found on one host."""

    role: str
    control: Control
    status: Status
    message: str = ""


def control(
    id: str, title: str, *, severity: Severity = "medium", satisfies: tuple[str, ...] | list[str] = ()
) -> Callable[[Check], Check]:
    """Turn a ``test_...(host, settings)`` function into a control."""

    def mark(check: Check) -> Check:
        check.control = Control(id, title, severity, tuple(satisfies), check)  # type: ignore[attr-defined]
        return check

    return mark


def controls_of(role: str) -> list[Control]:
    """Return the controls of ``roles/<role>/checks.py`` in the order they are written."""
    module = import_module(f"roles.{role}.checks")
    return [value.control for value in vars(module).values() if hasattr(value, "control")]


def run_controls(role: str, host: Any, settings: Any) -> Iterator[Result]:
    """Run every control of a role.

    Args:
        role: folder name below ``roles/``.
        host: a ``testinfra.host.Host``.
        settings: that role's settings object for the host.
    """
    for item in controls_of(role):
        try:
            item.check(host, settings)
        except NotApplicable as reason:
            yield Result(role, item, Status.NOT_APPLICABLE, str(reason))
        except AssertionError as failure:
            yield Result(role, item, Status.FAIL, str(failure).strip() or "the check's assertion does not hold")
        except Exception as error:
            yield Result(role, item, Status.ERROR, f"{type(error).__name__}: {error}")
        else:
            yield Result(role, item, Status.PASS)
