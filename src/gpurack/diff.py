"""The part of operations that put files themselves in ``pyinfra --diff``."""

from __future__ import annotations

from pyinfra import host, logger, state
from pyinfra.operations.util.files import generate_color_diff


def log_diff(path: str, before: str, after: str) -> None:
    """Print what will change in a file if pyinfra was called with ``--diff``."""
    if not state.config.DIFF:
        return
    host.log(f"Will modify {path}", logger.info)
    for line in generate_color_diff(before.splitlines(keepends=True), after.splitlines(keepends=True)):
        logger.info("  %s", line)
