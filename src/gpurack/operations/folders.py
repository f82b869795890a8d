"""Directories for containers."""

from __future__ import annotations

import shlex
from collections.abc import Generator

from pyinfra import host
from pyinfra.api import operation

from gpurack.facts.folder import Folder


@operation()
def owned(path: str, owner: str, mode: str = "700") -> Generator[str, None, None]:
    """Make a directory that belongs to a user by number; what is in it keeps its owner.

    pyinfra's own operation compares names, and would find another one for a number that some account of the host has.

    + path: absolute path
    + owner: numbers of user and group, such as ``999:999``
    + mode: permissions in octal
    """
    found = host.get_fact(Folder, path=path)
    if found == (owner, mode):
        host.noop(f"{path} is in place")
        return
    user, _, group = owner.partition(":")
    yield f"install -d -o {user} -g {group} -m {mode} {shlex.quote(path)}"
