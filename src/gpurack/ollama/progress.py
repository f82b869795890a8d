"""Progress of transfers: a bar each on a terminal, else a line now and then."""

from __future__ import annotations

import sys
import time
from contextlib import AbstractContextManager
from types import TracebackType

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

LINE_SECONDS = 10
"""Time between two lines where there is no terminal."""

_bars: Progress | None = None
_users = 0


class Transfer(AbstractContextManager["Transfer"]):
    """One transfer to one host, shown while it lasts.

    Several hosts work at the same time, and a terminal has one place for bars: they share it.
    """

    def __init__(self, host: str, what: str) -> None:
        """Name it."""
        self._label = f"[{host}] {what}"
        self._task: TaskID | None = None
        self._began = self._told = time.monotonic()
        self._first = -1

    def __enter__(self) -> Transfer:
        global _bars, _users
        if sys.stderr.isatty():
            if _bars is None:
                columns = (
                    *(TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(binary_units=True)),
                    *(TransferSpeedColumn(), TimeRemainingColumn()),
                )
                _bars = Progress(*columns, console=Console(stderr=True), transient=True)
                _bars.start()
            _users += 1
            self._task = _bars.add_task(self._label, total=None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        global _bars, _users
        if self._task is None or _bars is None:
            return
        _bars.remove_task(self._task)
        _users -= 1
        if not _users:
            _bars.stop()
            _bars = None

    def update(self, have: int, total: int) -> None:
        """Show that so many bytes of all are there."""
        if _bars is not None and self._task is not None:
            _bars.update(self._task, completed=have, total=total)
            return
        now = time.monotonic()
        if self._first < 0:
            self._first = have
        if now - self._told >= LINE_SECONDS:
            self._told = now
            speed = (have - self._first) / (now - self._began)
            left = f", {(total - have) / speed:.0f} s left" if speed > 0 else ""
            click.echo(f"    {self._label}: {line(have, total)}, {size(speed)}/s{left}", err=True)


def line(have: int, total: int) -> str:
    """Return how far a transfer is."""
    return f"{size(have)} of {size(total)}" + (f" ({100 * have // total} %)" if total else "")


def size(count: float) -> str:
    """Return a number of bytes as people read it."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
