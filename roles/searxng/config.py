"""The files SearXNG reads at its start."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from gpurack.operations.compose import ROOT
from gpurack.rendering import render
from roles.searxng.settings import SearxngSettings

HOME = f"{ROOT}/searxng"
CONFIG = f"{HOME}/config"
LABEL = "org.gpurack.config"
"""Label of the container with the checksum of its files: with another one Compose makes it anew."""


def config_files(settings: SearxngSettings) -> dict[str, str]:
    """Return the text of each file in :data:`CONFIG` by its name."""
    return {
        name: render(f"templates/searxng/{name}.j2", settings=settings) for name in ("settings.yml", "limiter.toml")
    }


def checksum(files: Mapping[str, str]) -> str:
    """Return one checksum of some files."""
    return hashlib.sha256("\0".join(text for item in sorted(files.items()) for text in item).encode()).hexdigest()
