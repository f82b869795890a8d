"""The doctor's reports: for a person on a terminal, and for a machine as JSON."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any, Literal

from pydantic import BaseModel, Field
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from gpurack.doctor.diagnosis import Diagnosis, Finding, Outcome
from gpurack.doctor.examine import Examination

STYLES = {"low": "dim", "medium": "yellow", "high": "red", "critical": "bold red"}


class HostReport(BaseModel):
    """One host of the report.

    Attributes:
        host: its name in the inventory.
        examined: whether it could be examined; if not, nothing is known and ``error`` says why.
        error: why it could not.
        cause: id of the first finding: what to cure first; None when nothing was found.
        findings: causes, then their consequences.
        tests: test id -> ``ok``, ``finding`` or ``not applicable``, in order.
    """

    host: str
    examined: bool
    error: str = ""
    cause: str | None = None
    findings: tuple[Finding, ...] = ()
    tests: dict[str, Outcome] = {}


class Report(BaseModel):
    """What ``gpurack doctor --json`` prints. ``schema`` changes its number when a field is taken away or renamed."""

    schema_name: Literal["gpurack.doctor/1"] = Field(default="gpurack.doctor/1", serialization_alias="schema")
    gpurack: str
    time: datetime
    inventory: str
    hosts: tuple[HostReport, ...]


def as_report(inventory: str, examinations: Iterable[Examination]) -> Report:
    """Return the report for machines."""
    return Report(
        gpurack=version("gpurack"),
        time=datetime.now(UTC),
        inventory=inventory,
        hosts=tuple(_host(item) for item in examinations),
    )


def _host(item: Examination) -> HostReport:
    if item.diagnosis is None:
        return HostReport(host=item.host, examined=False, error=item.error)
    findings = item.diagnosis.findings
    return HostReport(
        host=item.host,
        examined=True,
        cause=findings[0].id if findings else None,
        findings=findings,
        tests=item.diagnosis.outcomes,
    )


def as_json(report: Report) -> str:
    """Return a report as JSON text."""
    return report.model_dump_json(by_alias=True, indent=2)


def show(item: Examination, console: Console) -> None:
    """Print what was found on one host."""
    if item.diagnosis is None:
        console.print(Text(f"{item.host}: cannot be examined: {item.error}", style="red"))
        return
    console.print(Text(f"{item.host}: {summary(item.diagnosis)}", style="bold"))
    for number, finding in enumerate(item.diagnosis.causes, 1):
        _show_finding(number, finding, console)
    if consequences := item.diagnosis.consequences:
        console.print(Padding(Text("Consequences, gone with their cause:", style="dim"), (0, 0, 0, 2), expand=False))
        for finding in consequences:
            first = finding.seen[0] if finding.seen else ""
            line = f"{headline(finding)} [{finding.id}, from {', '.join(finding.explained_by)}]: {first}"
            console.print(Padding(Text(line), (0, 0, 0, 4), expand=False))
    console.print()


def summary(diagnosis: Diagnosis) -> str:
    """Return the outcome in a few words."""
    count = {outcome: list(diagnosis.outcomes.values()).count(outcome) for outcome in Outcome}
    done = f"{count[Outcome.OK]} tests ok, {count[Outcome.NOT_APPLICABLE]} not applicable"
    if not diagnosis.findings:
        return f"nothing found ({done})"
    causes, rest = len(diagnosis.causes), len(diagnosis.consequences)
    follow = f", {rest} consequence{'s' if rest > 1 else ''}" if rest else ""
    return f"{causes} finding{'s' if causes > 1 else ''}{follow} ({done})"


def headline(finding: Finding) -> str:
    """Return a finding's title, after the classic error's name if it is one."""
    return f"{finding.error}: {finding.title}" if finding.error else finding.title


def _show_finding(number: int, finding: Finding, console: Console) -> None:
    title = Text.assemble(
        f"{number}. ",
        (headline(finding), STYLES[finding.severity]),
        (f"  {finding.severity}, {finding.id}", "dim"),
    )
    console.print(Padding(title, (0, 0, 0, 2), expand=False))
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    rows: list[tuple[str, Any]] = [("seen", Text("\n".join(finding.seen))), ("why", Text(finding.why))]
    for name, value in [*rows, ("cure", Text(finding.cure, style="green"))]:
        table.add_row(name, value)
    console.print(Padding(table, (0, 0, 0, 5), expand=False))
