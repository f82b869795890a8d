"""The literal command with pyinfra's own options, as a sysadmin types it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gpurack.lab import Machine
from tests.testbed.site import Site

pytestmark = pytest.mark.host

ROOT = Path(__file__).parents[2]
SETTINGS = {"base": {"timezone": "Europe/Berlin"}, "sshd": {"enabled": False}}


@pytest.fixture(scope="module")
def pair(machines: Callable[..., list[Machine]]) -> list[Machine]:
    return machines(2, release="bookworm")


@pytest.fixture(scope="module")
def site(pair: list[Machine], site_for: Callable[..., Site]) -> Site:
    return site_for(pair, SETTINGS)


def timezone(machine: Machine) -> str:
    return machine.ssh("readlink -f /etc/localtime").stdout.strip().removeprefix("/usr/share/zoneinfo/")


def test_dry_run_changes_nothing(site: Site, pair: list[Machine]) -> None:
    run = site.run(args=["--dry"])
    assert run.returncode == 0, run.output
    assert "Loading: deploys/site.py" in run.output
    assert [timezone(machine) for machine in pair] == ["Etc/UTC", "Etc/UTC"]


def test_limit_reaches_only_the_named_host(site: Site, pair: list[Machine]) -> None:
    first, second = pair
    run = site.run("base", args=["--limit", first.name])
    assert run.ok, run.output
    assert timezone(first) == "Europe/Berlin"
    assert timezone(second) == "Etc/UTC"


def test_diff_shows_what_is_different(site: Site, pair: list[Machine]) -> None:
    pair[0].ssh("sed -i '$ a # stray' /etc/systemd/journald.conf.d/*gpurack*")
    run = site.run("base", args=["--diff", "--limit", pair[0].name])
    assert run.ok, run.output
    assert "- # stray" in run.output


def test_json_is_json(site: Site, pair: list[Machine]) -> None:
    result = site.command("base", args=["--json", "-y"])
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert {machine.name for machine in pair} <= set(json.dumps(report).replace('"', " ").split())


def test_serial_and_no_wait(site: Site) -> None:
    for option in ("--serial", "--no-wait"):
        run = site.run("base", args=[option])
        assert run.ok, run.output
        assert not any(run.changed.values()), run.output


def test_facts_and_commands_of_pyinfra_go_on_working(site: Site, pair: list[Machine]) -> None:
    pyinfra = [str(Path(sys.executable).with_name("pyinfra")), str(site.folder)]
    result = subprocess.run(
        [*pyinfra, "exec", "--", "cat", "/etc/os-release"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert (result.stdout + result.stderr).count("VERSION_CODENAME=bookworm") == len(pair)


@pytest.mark.parametrize("installer", ["pip", "uv"])
def test_installed_beside_stock_pyinfra(installer: str, site: Site, tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    python = str(venv / "bin/python")
    install = {
        "pip": [python, "-m", "pip", "install", "--quiet", str(ROOT)],
        "uv": [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--python", python, str(ROOT)],
    }[installer]
    subprocess.run(install, check=True)
    result = subprocess.run(
        [str(venv / "bin/pyinfra"), str(site.folder), "deploys/", "--dry"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "deploys/site.py" in result.stderr
