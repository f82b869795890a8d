"""Directories as arguments of the pyinfra command: ``pyinfra inventories/prod deploys/``.

pyinfra 3.10 takes an inventory file and deploy files, not directories. Its command patches the standard library with
gevent before it parses its arguments, and gevent then calls every entry point of the group
``gevent.plugins.monkey.did_patch_all`` (documented in :mod:`gevent.events`). gpurack registers
:func:`on_monkey_patched` there; a directory argument becomes its entry file and pyinfra's own code is left alone.
"""

from __future__ import annotations

import sys
from pathlib import Path

INVENTORY_ENTRY = "hosts.py"
DEPLOY_ENTRY = "site.py"


def on_monkey_patched(_event: object) -> None:
    """Name entry files instead of directories, if the running program is the pyinfra command."""
    if Path(sys.argv[0]).name in {"pyinfra", "pyinfra.exe"} or _run_as_module():
        sys.argv[1:] = with_entry_files(sys.argv[1:])


def _run_as_module() -> bool:
    """Tell ``python -m pyinfra``, where argv[0] is the path of a ``__main__.py``."""
    path = Path(sys.argv[0])
    return path.name == "__main__.py" and path.parent.name in {"pyinfra", "pyinfra_cli"}


def with_entry_files(arguments: list[str], root: Path = Path()) -> list[str]:
    """Replace directories by the file in them that pyinfra is to run.

    A directory that holds ``hosts.py`` is an inventory, one that holds ``site.py`` a set of deploys. Everything else
    is passed on as it is: option values that name directories (``--chdir``, ``--group-data``) hold neither file, or,
    where they do, are recognised by the option before them.

    Args:
        arguments: what follows the program's name.
        root: directory that relative paths start from.
    """
    result: list[str] = []
    for number, argument in enumerate(arguments):
        before = arguments[number - 1] if number else ""
        result.append(argument if before in {"--chdir", "--group-data"} else _entry_file(argument, root))
    return result


def _entry_file(argument: str, root: Path) -> str:
    if argument.startswith("-") or not argument:
        return argument
    try:
        if not (root / argument).is_dir():
            return argument
        for entry in (INVENTORY_ENTRY, DEPLOY_ENTRY):
            if (root / argument / entry).is_file():
                return str(Path(argument) / entry)
    except (OSError, ValueError):  # not a path: a command line for `pyinfra ... exec`, for one
        pass
    return argument
