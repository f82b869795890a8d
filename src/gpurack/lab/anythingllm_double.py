"""Image archive of the AnythingLLM double for test hosts, built without a container engine.

See ``tests/doubles/anythingllm/README.md`` for what the double answers and what it does not prove.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from gpurack.lab.double_image import DOUBLES, PYTHON, DoubleImage, ImageFile

REPOSITORY = "mintplexlabs/anythingllm"
VERSION = "1.16.0"
"""The AnythingLLM release whose name the double bears."""

UID = 1000

Fault = Literal["", "migration", "lose-rows", "silent"]


def archive(version: str = VERSION, *, fault: Fault = "") -> Path:
    """Return the archive of the double tagged ``mintplexlabs/anythingllm:<version>``, building it if it is not cached.

    Args:
        version: the tag.
        fault: what is wrong with this release: its migration fails half-way, it loses rows, or it never answers.

    Raises:
        RuntimeError: mmdebstrap is missing or failed; the message holds its last lines.
    """
    source = DOUBLES / "anythingllm"
    health = (source / "docker-healthcheck.sh").read_bytes()
    return DoubleImage(
        repository=REPOSITORY,
        version=version,
        packages=(*PYTHON, "bash"),
        files=[
            ImageFile("/app", None, uid=UID),
            ImageFile("/app/server", None, uid=UID),
            ImageFile("/app/server/storage", None, uid=UID),
            ImageFile("/app/server/.env", b"SERVER_PORT=3001\nSTORAGE_DIR='/app/server/storage'\n", 0o644, UID),
            ImageFile("/app/server/anythingllm.py", (source / "anythingllm.py").read_bytes()),
            ImageFile("/usr/local/bin/docker-healthcheck.sh", health),
        ],
        config={
            "Entrypoint": ["/usr/bin/python3", "/app/server/anythingllm.py"],
            "Env": [
                "NODE_ENV=production",
                "ANYTHING_LLM_RUNTIME=docker",
                f"DEPLOYMENT_VERSION={version}",
                f"GPURACK_DOUBLE_FAULT={fault}",
            ],
            "User": f"{UID}:{UID}",
            "WorkingDir": "/app",
            "ExposedPorts": {"3001/tcp": {}},
            "Healthcheck": {"Test": ["CMD", "/bin/bash", "/usr/local/bin/docker-healthcheck.sh"]},
        },
    ).archive()
