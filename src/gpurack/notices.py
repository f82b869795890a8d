"""What a run leaves for a person to do: said once more at its end, below pyinfra's scroll."""

from __future__ import annotations

from pyinfra import logger
from pyinfra.api.host import Host

_left: dict[str, list[str]] = {}


def leave(host: Host, text: str) -> None:
    """Say now, and again at the end of the run, what is left to do on a host."""
    if text not in _left.setdefault(host.name, []):
        _left[host.name].append(text)
        logger.warning(f"{host.print_prefix}{text}")


def take() -> list[str]:
    """Return one line for each notice, and forget them."""
    lines = [f"{name}: {text}" for name, texts in _left.items() for text in texts]
    _left.clear()
    return lines
