"""Image archive of the Ollama double for test hosts, built without a container engine.

See ``tests/doubles/ollama/README.md`` for what the double answers and what it does not prove.
"""

from __future__ import annotations

from pathlib import Path

from gpurack.lab.double_image import DOUBLES, DoubleImage, ImageFile

REPOSITORY = "ollama/ollama"
VERSION = "0.32.15"
"""The Ollama release whose name and API version the double bears; the ollama role's default."""

MODEL = "gpurack-double"
"""The one model name the double answers to."""


def archive(version: str = VERSION) -> Path:
    """Return the archive of the double tagged ``ollama/ollama:<version>``, building it if it is not cached.

    Args:
        version: the tag, and the version ``/api/version`` gives.

    Raises:
        RuntimeError: mmdebstrap is missing or failed; the message holds its last lines.
    """
    return DoubleImage(
        repository=REPOSITORY,
        version=version,
        files=[ImageFile("/usr/bin/ollama", (DOUBLES / "ollama" / "ollama.py").read_bytes())],
        config={
            "Entrypoint": ["/bin/ollama"],
            "Cmd": ["serve"],
            "Env": ["OLLAMA_HOST=0.0.0.0:11434", f"OLLAMA_DOUBLE_VERSION={version}"],
            "ExposedPorts": {"11434/tcp": {}},
        },
    ).archive()
