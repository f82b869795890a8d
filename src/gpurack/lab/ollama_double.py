"""Image archives of the Ollama double for test hosts, built without a container engine: without models, and with
llama.cpp's server, which pulls, makes and runs them for real.

See ``tests/doubles/ollama/README.md`` for what the double answers and what it does not prove.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from gpurack.lab.double_image import DOUBLES, PYTHON, DoubleImage, ImageFile

REPOSITORY = "ollama/ollama"
VERSION = "0.32.15"
"""The Ollama release whose name and API version the double bears; the ollama role's default."""

MODEL = "gpurack-double"
"""The one model name the double without an engine answers to."""

PROGRAM = "/usr/lib/ollama-double"
ENGINE_SUITE = "sid"  # the one suite with llama.cpp
ENGINE_PACKAGES = ("base-files", "python3-minimal", "libpython3-stdlib", "llama.cpp")
# Programs nobody starts, and the engine's code for other processors than the two commonest kinds.
ENGINE_WITHOUT = (
    r"\./usr/bin/llama-(bench|cli|completion)|\./usr/libexec/.*|.*/libggml-cpu-(?!x64|haswell).*|.*/pydoc_data/.*"
)
# Waits between two attempts of a download are a twentieth of Ollama's.
ENGINE_ENVIRONMENT = {"OLLAMA_DOUBLE_ENGINE": "1", "OLLAMA_DOUBLE_PATIENCE": "0.05"}


def archive(version: str = VERSION, *, engine: bool = False, environment: Mapping[str, str] | None = None) -> Path:
    """Return the archive of the double tagged ``ollama/ollama:<version>``, building it if it is not cached.

    Args:
        version: the tag, and the version ``/api/version`` gives.
        engine: with llama.cpp: models are pulled, made and run. Without, it answers for :data:`MODEL` alone.
        environment: further variables of the server, such as the faults in the double's README.

    Raises:
        RuntimeError: mmdebstrap is missing or failed; the message holds its last lines.
    """
    variables = {
        "OLLAMA_HOST": "0.0.0.0:11434",
        "OLLAMA_DOUBLE_VERSION": version,
        **(ENGINE_ENVIRONMENT if engine else {}),
        **(environment or {}),
    }
    sources = sorted((DOUBLES / "ollama").glob("*.py"))
    image = DoubleImage(
        repository=REPOSITORY,
        version=version,
        files=[
            ImageFile(PROGRAM),
            *(ImageFile(f"{PROGRAM}/{file.name}", file.read_bytes()) for file in sources),
            ImageFile("/usr/bin/ollama", link=f"{PROGRAM}/ollama.py"),
        ],
        config={
            "Entrypoint": ["/bin/ollama"],
            "Cmd": ["serve"],
            "Env": [f"{name}={value}" for name, value in variables.items()],
            "ExposedPorts": {"11434/tcp": {}},
        },
        packages=ENGINE_PACKAGES if engine else PYTHON,
        **({"suite": ENGINE_SUITE, "without": ENGINE_WITHOUT} if engine else {}),
    )
    return image.archive()
