"""A person's editor on a text that must not reach a disk."""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

from gpurack.secrets.errors import StoreError

TMPFS_MAGIC = 0x01021994  # linux/magic.h
RAMFS_MAGIC = 0x858458F6
QUIET_VIM = ("-n", "-i", "NONE", "-c", "set noundofile nobackup nowritebackup")
"""No swap file, no history of registers, no undo file: those would be written to a disk."""


def edited(text: str) -> str:
    """Return a text as a person left it in their editor; it is in memory (tmpfs) only, for their eyes only.

    Raises:
        StoreError: there is no file system in memory, no editor, or the editor failed.
    """
    with _in_memory() as folder:
        file = folder / "secrets.toml"
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
            stream.write(text)
        command = editor()
        try:
            done = subprocess.run([*command, str(file)], check=False)
        except OSError as error:
            raise StoreError(f"editor {command[0]}: {error.strerror}; set EDITOR") from None
        if done.returncode:
            raise StoreError(f"editor {command[0]}: exit status {done.returncode}; nothing is changed")
        try:
            return file.read_text()
        except (OSError, UnicodeDecodeError):
            raise StoreError("the edited text is gone or not UTF-8; nothing is changed") from None


def editor() -> list[str]:
    """Return the command of the person's editor: VISUAL, EDITOR, or what the system offers.

    Raises:
        StoreError: there is none.
    """
    chosen = os.environ.get("VISUAL") or os.environ.get("EDITOR")
    try:
        words = shlex.split(chosen) if chosen else []
    except ValueError:
        raise StoreError("EDITOR has an unclosed quotation mark") from None
    if not words:
        words = [name for name in ("sensible-editor", "nano", "vi") if shutil.which(name)][:1]
    if not words:
        raise StoreError("no editor found; set EDITOR, or use gpurack secrets set")
    if Path(words[0]).name in ("vim", "nvim"):
        words += QUIET_VIM
    return words


@contextmanager
def _in_memory() -> Iterator[Path]:
    """Make a directory in memory that goes with the process, even if the terminal is closed."""
    places = [Path(path) for path in (os.environ.get("XDG_RUNTIME_DIR"), "/dev/shm") if path]  # noqa: S108 - in memory
    place = next((path for path in places if is_in_memory(path)), None)
    if place is None:
        raise StoreError(
            "no file system in memory (XDG_RUNTIME_DIR or /dev/shm): secrets would be written to a disk in the clear; "
            "use gpurack secrets set"
        )

    def stop(number: int, _: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGHUP)}
    folder = Path(tempfile.mkdtemp(prefix="gpurack-", dir=place))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        for number, handler in before.items():
            signal.signal(number, handler)


def is_in_memory(path: Path) -> bool:
    """Tell whether a directory is on a file system in memory, and may be written."""
    if not (path.is_dir() and os.access(path, os.W_OK)):
        return False
    # struct statfs: f_type is its first word. Python's os.statvfs leaves it out.
    buffer = ctypes.create_string_buffer(512)
    if ctypes.CDLL(None, use_errno=True).statfs(str(path).encode(), buffer) != 0:
        return False
    kind = ctypes.cast(buffer, ctypes.POINTER(ctypes.c_long))[0] & 0xFFFFFFFF
    return kind in (TMPFS_MAGIC, RAMFS_MAGIC)
