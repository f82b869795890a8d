"""Files on their way to Ollama's store on a host: resumed where they were cut, and compared when they are there."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Protocol

from gpurack.ollama.api import OllamaError, Report, Shell, run
from gpurack.ollama.plan import File

PIECE = 1 << 20


class Feeder(Shell, Protocol):
    """A shell that gives a script a file as its input."""

    def feed(self, script: str, source: BinaryIO, sent: Callable[[int], None]) -> tuple[int, str]:
        """Run a script on the rest of an open file; return its exit status and errors."""


def upload(shell: Feeder, file: File, store: str, report: Report) -> None:
    """Bring a file into the store as a blob, unless it is there.

    It is put together beside the blobs, on the same disk, so that it never takes its room twice. What an earlier run
    left is gone on from if it is the beginning of this file.

    Args:
        shell: of the host.
        file: the file.
        store: directory of Ollama's models on the host.
        report: told of the progress.

    Raises:
        OllamaError: the connection is lost, the disk is full, or what arrived is not the file.
    """
    blob = shlex.quote(f"{store}/blobs/sha256-{file.sha256}")
    part = shlex.quote(f"{store}/upload/{file.sha256}.part")
    there = run(
        shell,
        f"install -d -m 700 {shlex.quote(store)}/upload && install -d {shlex.quote(store)}/blobs || exit 1\n"
        f"if test -e {blob}; then echo blob; elif test -e {part}; then stat --format %s {part}; else echo 0; fi",
    ).strip()
    if there == "blob":
        return
    start = int(there)
    if start and not _is_beginning(shell, Path(file.path), part, start):
        run(shell, f"rm {part}")
        start = 0
    have = start

    def sent(count: int) -> None:
        nonlocal have
        have += count
        report(have, file.size)

    with Path(file.path).open("rb") as source:
        source.seek(start)
        status, errors = shell.feed(f"cat >>{part}", source, sent)
    if status:
        raise OllamaError(f"{file.path} is not copied as a whole; what has arrived is kept: {errors.strip()}")
    arrived = run(shell, f"sha256sum <{part}").split()[0]
    if arrived != file.sha256:
        run(shell, f"rm {part}")
        raise OllamaError(
            f"{file.path} does not have the SHA-256 {file.sha256}: {arrived} arrived; was the file changed meanwhile?"
        )
    run(shell, f"chmod 644 {part} && mv {part} {blob}")


def _is_beginning(shell: Shell, path: Path, part: str, length: int) -> bool:
    """Tell whether what is on the host is the beginning of a file."""
    if length > path.stat().st_size:
        return False
    arrived = run(shell, f"sha256sum <{part}").split()[0]
    digest = hashlib.sha256()
    with path.open("rb") as source:
        left = length
        while left and (piece := source.read(min(left, PIECE))):
            digest.update(piece)
            left -= len(piece)
    return arrived == digest.hexdigest()
