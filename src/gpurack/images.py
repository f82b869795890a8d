"""Where images come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

_CATALOGUE = {"anythingllm": ("mintplexlabs/anythingllm", "1.16.0")}


class ImageSource(BaseModel):
    """Stand-in until the catalogue lands."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    archives: dict[str, Path] = {}
    overrides: dict[str, dict[str, Any]] = {}

    def reference(self, name: str) -> str:
        """Return what Compose writes after ``image:``."""
        repository, tag = _CATALOGUE[name]
        return f"{repository}:{self.overrides.get(name, {}).get('tag', tag)}"

    def archive(self, name: str) -> Path | None:
        """Return the archive."""
        return self.archives.get(name)
