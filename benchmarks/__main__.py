"""``python -m benchmarks``: the same 41 steps on a host that needs none of them, by several tools, in turns.

The host, the connection user and the key are the same for all; each round runs every tool once, so that whatever
else the machine does falls on all of them. Figures are medians of whole commands, Python's start included.
"""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import mitogen
from rich.console import Console
from rich.table import Table

from gpurack import lab

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
ANSI = re.compile(r"\x1b\[[0-9;]*m")
OPERATIONS = 41


@dataclass
class Tool:
    """A command to be timed, and how its output says that nothing had to be changed."""

    name: str
    command: list[str]
    cwd: Path
    environment: dict[str, str]
    unchanged: Callable[[str], bool]

    def run(self) -> str:
        """Run once; return the output.

        Raises:
            SystemExit: the command failed.
        """
        result = subprocess.run(
            self.command,
            cwd=self.cwd,
            env={**os.environ, **self.environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if result.returncode:
            raise SystemExit(f"{self.name} failed:\n{result.stdout}")
        return result.stdout


def no_change_in_pyinfra(output: str) -> bool:
    """Tell from pyinfra's output that every operation found nothing to do."""
    plain = ANSI.sub("", output)
    return plain.count("No changes") == OPERATIONS and "Success\n" not in plain


def no_change_in_ansible(output: str) -> bool:
    """Tell from Ansible's recap that no task changed anything."""
    return re.search(r"ok=6\s+changed=0\s+unreachable=0\s+failed=0", ANSI.sub("", output)) is not None


def tools(machine: lab.Machine, folder: Path) -> list[Tool]:
    """Return the commands to be compared, with their inventories written to a folder."""
    data = {key: str(value) if isinstance(value, Path) else value for key, value in machine.data().items()}
    (folder / "hosts.py").write_text(f"bench = [({machine.name!r}, {data!r})]\n")
    deploy = [str(ROOT / "benchmarks/noop.py"), "-y"]
    pyinfra = [str(BIN / "pyinfra"), str(folder / "hosts.py"), *deploy]
    (folder / "ansible.json").write_text(json.dumps(_ansible_inventory(machine)))
    playbook = [str(BIN / "ansible-playbook"), "-i", str(folder / "ansible.json"), str(ROOT / "benchmarks/noop.yml")]
    ansible = {"ANSIBLE_PIPELINING": "True", "ANSIBLE_HOME": str(folder / "ansible"), "LC_ALL": "C.UTF-8"}
    strategy = {
        "ANSIBLE_STRATEGY_PLUGINS": str(Path(mitogen.__file__).parents[1] / "ansible_mitogen/plugins/strategy"),
        "ANSIBLE_STRATEGY": "mitogen_linear",
    }
    return [
        Tool("gpurack", [*pyinfra, "--data", "own=true"], ROOT, {}, no_change_in_pyinfra),
        Tool("pyinfra's operations in gpurack", pyinfra, ROOT, {}, no_change_in_pyinfra),
        # Outside of the repository pyinfra finds neither config.py nor group_data: it is as it comes.
        Tool("stock pyinfra", pyinfra, folder, {}, no_change_in_pyinfra),
        Tool("Ansible, Mitogen", playbook, folder, {**ansible, **strategy}, no_change_in_ansible),
        Tool("Ansible, pipelining", playbook, folder, ansible, no_change_in_ansible),
    ]


def _ansible_inventory(machine: lab.Machine) -> dict[str, object]:
    options = f"-o UserKnownHostsFile={machine.known_hosts} -o StrictHostKeyChecking=yes"
    host = {
        "ansible_host": machine.address,
        "ansible_port": machine.port,
        "ansible_user": machine.user,
        "ansible_ssh_private_key_file": str(machine.key),
        "ansible_ssh_common_args": options,
        "ansible_python_interpreter": "/usr/bin/python3",
    }
    return {"all": {"hosts": {machine.name: host}}}


def measure(compared: list[Tool], rounds: int, console: Console) -> dict[str, list[float]]:
    """Return the seconds each tool took in each round.

    Raises:
        SystemExit: a tool changed something, so that the case is not the one to be measured.
    """
    for tool in compared:
        tool.run()
    seconds: dict[str, list[float]] = {tool.name: [] for tool in compared}
    for number in range(rounds):
        console.print(f"round {number + 1} of {rounds}")
        for tool in compared:
            started = time.perf_counter()
            output = tool.run()
            seconds[tool.name].append(time.perf_counter() - started)
            if not tool.unchanged(output):
                raise SystemExit(f"{tool.name} changed something on a host that was as it should be:\n{output}")
    return seconds


@click.command()
@click.option("--rounds", default=7, show_default=True)
@click.option("--release", default="trixie", show_default=True)
def main(rounds: int, release: str) -> None:
    """Measure, and print a table of medians and of how many times longer than gpurack each tool took."""
    console = Console()
    [machine] = lab.up(["bench"], release=release)
    try:
        machine.ssh("apt-get -q update && apt-get -qy install curl python3 python3-apt", timeout=300)
        with TemporaryDirectory() as folder:
            seconds = measure(tools(machine, Path(folder)), rounds, console)
    finally:
        machine.down()
    median = {name: statistics.median(values) for name, values in seconds.items()}
    table = Table("tool", title=f"{OPERATIONS} operations, nothing to do: medians of {rounds} rounds")
    for column in ("seconds", "fastest to slowest", "times gpurack"):
        table.add_column(column, justify="right")
    for name, values in seconds.items():
        spread = f"{min(values):.2f} to {max(values):.2f}"
        table.add_row(name, f"{median[name]:.2f}", spread, f"{median[name] / median['gpurack']:.1f}")
    console.print(table)
    versions = ", ".join(f"{name} {version(name)}" for name in ("pyinfra", "ansible-core", "mitogen"))
    console.print(f"{versions}, Python {platform.python_version()}, {os.cpu_count()} cores, host Debian {release}")


if __name__ == "__main__":
    main()
