"""``python -m gpurack.lab.janitor PID``: waits for a process to end, however it ends, and removes its test hosts."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
from functools import cache

from gpurack import lab


@cache
def watch(owner: int) -> None:
    """Start the janitor of a process, once; it outlives the process, its terminal and its signals."""
    subprocess.Popen(
        [sys.executable, "-m", "gpurack.lab.janitor", str(owner)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def main(owner: int) -> None:
    """Wait for a process to end, then remove what it has left."""
    with contextlib.suppress(ProcessLookupError):  # it has ended already
        select.select([os.pidfd_open(owner)], [], [])
    lab.hosts()
    lab.down([])


if __name__ == "__main__":
    main(int(sys.argv[1]))
