"""Loading an inventory the way the pyinfra command does, with errors fit to be read."""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pyinfra.api.inventory import Inventory
from pyinfra.api.state import State
from pyinfra.context import ctx_state
from pyinfra_cli.exceptions import UnexpectedExternalError
from pyinfra_cli.inventory import make_inventory

from gpurack.directories import with_entry_files
from gpurack.secrets import stores


class InventoryError(Exception):
    """An inventory that cannot be loaded; the message names the file, the line and the cause."""


def load(path: str, *, override: Mapping[str, Any] | None = None, group_data: Sequence[str] = ()) -> Inventory:
    """Return the inventory in a directory (its ``hosts.py``) or file, with the data of all its groups.

    Secrets of the store are those of this inventory from now on.

    Args:
        path: directory or file, relative to the current directory (the repository's root).
        override: data that wins over everything else, as ``--data`` and ``--ssh-user`` give it.
        group_data: further group data directories, as ``--group-data`` gives them.

    Raises:
        InventoryError: no such file, an error in one of its files, or no host in it.
    """
    [file] = with_entry_files([path])
    if not Path(file).is_file() and ("/" in file or file.endswith(".py")):
        raise InventoryError(
            f"{path}: no such inventory; name a directory that holds hosts.py, such as inventories/prod, "
            "and run from the repository's root"
        )
    stores.use(Path(file).parent)
    if not ctx_state.isset():
        ctx_state.set(State())  # pyinfra notes in it which file it is executing
    try:
        inventory: Inventory = make_inventory(
            file,
            override_data=dict(override or {}),
            cwd=str(Path.cwd()),
            group_data_directories=list(group_data),
        )
    except UnexpectedExternalError as error:
        raise InventoryError(_explain(error.exception, error.filename)) from error
    except SyntaxError as error:
        raise InventoryError(_explain(error, file)) from error
    except SystemExit as error:
        # An inventory that computes its hosts says so itself when it cannot.
        raise InventoryError(f"{file}: {error.code}") from error
    if not any(True for _ in inventory):
        raise InventoryError(f'{file}: no hosts in it; name at least one, such as gpu = [("gpu1.example.org", {{}})]')
    return inventory


def _explain(error: Exception, filename: str) -> str:
    """Return "file:line: cause" for an exception raised by an inventory's own file."""
    if isinstance(error, SyntaxError):
        return f"{_relative(error.filename or filename)}:{error.lineno}: {error.msg}: {(error.text or '').strip()}"
    frames = traceback.extract_tb(getattr(error, "_traceback", error.__traceback__))
    lines = [frame.lineno for frame in frames if Path(frame.filename) == Path(filename)]
    place = f"{_relative(filename)}:{lines[-1]}" if lines else _relative(filename)
    return f"{place}: {type(error).__name__}: {error}"


def _relative(filename: str) -> str:
    path = Path(filename)
    return str(path.relative_to(Path.cwd())) if path.is_absolute() and path.is_relative_to(Path.cwd()) else filename
