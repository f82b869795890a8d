"""Directory arguments of the pyinfra command."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpurack import directories
from gpurack.directories import with_entry_files


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    (tmp_path / "inventories/prod").mkdir(parents=True)
    (tmp_path / "inventories/prod/hosts.py").touch()
    (tmp_path / "deploys").mkdir()
    (tmp_path / "deploys/site.py").touch()
    (tmp_path / "deploys/base.py").touch()
    (tmp_path / "empty").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("given_arguments", "passed_on"),
    [
        (["inventories/prod", "deploys/"], ["inventories/prod/hosts.py", "deploys/site.py"]),
        (["inventories/prod/", "deploys"], ["inventories/prod/hosts.py", "deploys/site.py"]),
        (
            ["--limit", "gpu1", "-y", "inventories/prod", "deploys/base.py", "--dry"],
            ["--limit", "gpu1", "-y", "inventories/prod/hosts.py", "deploys/base.py", "--dry"],
        ),
        (["inventories/prod/hosts.py", "deploys/base.py"], ["inventories/prod/hosts.py", "deploys/base.py"]),
        (["gpu1.example.org", "exec", "--", "ls empty"], ["gpu1.example.org", "exec", "--", "ls empty"]),
        (["--chdir", "deploys", "a.py"], ["--chdir", "deploys", "a.py"]),
        (["--group-data", "inventories/prod", "x"], ["--group-data", "inventories/prod", "x"]),
        (["empty", "deploys/"], ["empty", "deploys/site.py"]),
        ([], []),
    ],
)
def test_directories_become_their_entry_files(
    repository: Path, given_arguments: list[str], passed_on: list[str]
) -> None:
    assert with_entry_files(given_arguments, repository) == passed_on


@given(st.lists(st.text()))
def test_any_other_argument_is_passed_on_unchanged(arguments: list[str]) -> None:
    assert with_entry_files(arguments, Path("/nonexistent")) == arguments


@pytest.mark.parametrize(
    ("program", "changed"),
    [
        ("/usr/local/bin/pyinfra", True),
        ("/x/site-packages/pyinfra_cli/__main__.py", True),
        ("/usr/bin/gunicorn", False),
        ("/x/pytest/__main__.py", False),
    ],
)
def test_only_the_pyinfra_command_is_touched(
    repository: Path, monkeypatch: pytest.MonkeyPatch, program: str, changed: bool
) -> None:
    monkeypatch.chdir(repository)
    monkeypatch.setattr("sys.argv", [program, "inventories/prod", "deploys/"])
    directories.on_monkey_patched(object())
    import sys

    assert (sys.argv[1:] == ["inventories/prod/hosts.py", "deploys/site.py"]) is changed
