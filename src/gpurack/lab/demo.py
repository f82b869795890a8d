"""``gpurack lab demo``: the main job from nothing to an answer, on a disposable host of this machine."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from gpurack import lab
from gpurack.lab.ollama_double import MODEL, archive

NAME = "demo"
QUESTION = "Which machine answers this question?"
COMMAND = ("pyinfra", "inventories/lab", "deploys/", "-y", "--limit", NAME)

STARTING = re.compile(r"^--> Starting .*?operation: (?P<step>.*?)\s*$")
OUTCOME = re.compile(r"^\s*\[[^\]]+\]\s+(?P<outcome>Success|No changes|Error|Skipped)\b")
ANSI = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


@dataclass
class Role:
    """What one run did for one role."""

    operations: int = 0
    changed: int = 0
    seconds: float = 0.0


@dataclass
class Run:
    """A run of the literal command, followed line by line."""

    roles: dict[str, Role] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    returncode: int = 0
    seconds: float = 0.0

    @property
    def changed(self) -> int:
        """Operations that changed something."""
        return sum(role.changed for role in self.roles.values())

    @property
    def operations(self) -> int:
        """Operations that were looked at."""
        return sum(role.operations for role in self.roles.values())

    def follow(self, lines: Iterator[str]) -> Iterator[str]:
        """Read pyinfra's output; yield the name of each operation as it starts."""
        role, before = None, time.monotonic()
        for raw in lines:
            line = ANSI.sub("", raw).rstrip()
            self.lines.append(line)
            if match := STARTING.match(line):
                title, _, step = match["step"].partition(" | ")
                role = self.roles.setdefault(title, Role())
                before = time.monotonic()
                yield f"{title}: {step}"
            elif role and (match := OUTCOME.match(line)):
                role.operations += 1
                role.changed += match["outcome"] == "Success"
                role.seconds += time.monotonic() - before
                before = time.monotonic()


def deploy(console: Console, *, list_steps: bool = False) -> Run:
    """Run the literal command from the repository's root and show which operation is at work.

    Args:
        console: where to show it.
        list_steps: print a line for each operation where the console is no terminal, as in a CI log.
    """
    run, started = Run(), time.monotonic()
    program = Path(sys.executable).with_name(COMMAND[0])
    with (
        subprocess.Popen(
            [str(program), *COMMAND[1:]],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "PYINFRA_PROGRESS": "off"},
        ) as process,
        console.status("connecting") as status,
    ):
        assert process.stdout is not None  # noqa: S101 - it was asked for above
        for step in run.follow(process.stdout):
            status.update(f"{run.operations + 1:3d}  {step}")
            if list_steps and not console.is_terminal:
                console.print(f"  {run.operations + 1:3d}  {step}", highlight=False)
    run.returncode, run.seconds = process.returncode, time.monotonic() - started
    return run


def table(run: Run) -> Table:
    """Return what a run did as a table of roles, operations and seconds."""
    shown = Table("role", box=None, pad_edge=False)
    for column in ("operations", "changed", "seconds"):
        shown.add_column(column, justify="right")
    for title, role in run.roles.items():
        shown.add_row(title, str(role.operations), str(role.changed), f"{role.seconds:.1f}")
    shown.add_row("whole run", str(run.operations), str(run.changed), f"{run.seconds:.1f}", style="bold")
    return shown


def ask(machine: lab.Machine) -> str:
    """Ask the served API a question, streaming, as a program on the host would; return the answer."""
    body = json.dumps({"model": MODEL, "prompt": QUESTION})
    reply = machine.ssh(f"curl -sSfN http://127.0.0.1:11434/api/generate -d '{body}'").stdout
    return "".join(json.loads(line)["response"] for line in reply.splitlines())


def run_demo(release: str, *, keep: bool, console: Console) -> int:
    """Boot a host, deploy, ask, deploy again; return the exit code, 0 only if all of it came out right."""
    console.print("[bold]1. A bare host[/]")
    with console.status("preparing a root file system and the image archive (some minutes the first time)"):
        image = archive()
        started = time.monotonic()
        [machine] = lab.up([NAME], release=release)
    console.print(f"   {machine.name}: Debian {release}, up in {time.monotonic() - started:.1f} s; image {image.name}")
    try:
        console.print(f"\n[bold]2. {' '.join(COMMAND)}[/]")
        first = deploy(console, list_steps=True)
        if first.returncode:
            click.echo("\n".join(first.lines), err=True)
            return first.returncode
        console.print(table(first))
        console.print("\n[bold]3. A question to the served API[/]")
        console.print(f"   > {QUESTION}\n   < {ask(machine)}", highlight=False, markup=False)
        console.print(f"\n[bold]4. {' '.join(COMMAND)}[/], again")
        second = deploy(console)
        if second.returncode or second.changed:
            click.echo("\n".join(second.lines), err=True)
            return second.returncode or 1
        console.print(f"   {second.operations} operations, no changes, {second.seconds:.1f} s")
    finally:
        if not keep:
            machine.down()
    if keep:
        console.print(f"\nThe host is still there: gpurack lab ssh {NAME}; gpurack lab down {NAME} removes it.")
    return 0


@click.command()
@click.option("--release", default="trixie", show_default=True, type=click.Choice(["bookworm", "trixie"]))
@click.option("--keep", is_flag=True, help="Leave the host running.")
def demo(release: str, *, keep: bool) -> None:
    """Boot a disposable host, run the literal command on it, ask it a question, run again."""
    sys.exit(run_demo(release, keep=keep, console=Console()))
