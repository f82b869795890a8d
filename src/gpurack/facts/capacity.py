"""What a host has for models besides GPUs: memory, disk, and the models that are on it."""

from __future__ import annotations

import shlex
from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict
from pyinfra.api.facts import FactBase


class Room(BaseModel):
    """Memory and disk of a host.

    Attributes:
        ram_bytes: memory of the host; 0 when it could not be read.
        disk_bytes: free on the models' file system; None when it could not be read.
        models: paths of the manifests in Ollama's store, ``registry.ollama.ai/library/deepseek-r1/7b``, in small
            letters.
    """

    model_config = ConfigDict(frozen=True)

    ram_bytes: int = 0
    disk_bytes: int | None = None
    models: frozenset[str] = frozenset()


class ModelRoom(FactBase[Room]):
    """Returns the :class:`Room` for models kept in a directory, which need not be there yet."""

    default = Room

    def command(self, models_dir: str) -> str:
        """Print the host's memory, the free bytes of the nearest directory there is, and the manifests' paths."""
        return (
            "sed -n 's/^MemTotal: *\\([0-9]*\\) kB$/ram \\1/p' /proc/meminfo; "
            f"d={shlex.quote(models_dir)}; m=$d/models/manifests; "
            'while [ ! -d "$d" ]; do d=$(dirname "$d"); done; '
            "df --output=avail -B1 \"$d\" | sed -n 's/^ *\\([0-9][0-9]*\\)$/disk \\1/p'; "
            "find \"$m\" -mindepth 4 -maxdepth 4 -type f -printf 'model %P\\n' 2>/dev/null; true"
        )

    def process(self, output: Iterable[str]) -> Room:
        """Read the lines; those of another form are passed over."""
        ram, disk, models = 0, None, set()
        for line in output:
            kind, _, value = line.strip().partition(" ")
            if kind == "model":
                models.add(value.lower())
            elif kind in {"ram", "disk"} and value.isdecimal():
                ram, disk = (int(value) * 1024, disk) if kind == "ram" else (ram, int(value))
        return Room(ram_bytes=ram, disk_bytes=disk, models=frozenset(models))
