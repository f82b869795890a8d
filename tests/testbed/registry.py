"""The registry double as tests use it: started on an address of this machine, filled, and told what goes wrong."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any, Self

PROGRAM = Path(__file__).parents[1] / "doubles/registry/registry.py"


def _module() -> Any:
    spec = importlib.util.spec_from_file_location("registry_double", PROGRAM)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Registry:
    """A registry of Ollama models on this machine, as a context manager."""

    def __init__(self, folder: Path, address: str = "127.0.0.1") -> None:
        """Describe it.

        Args:
            folder: where its models are.
            address: of this machine.
        """
        self.folder, self._address = folder, address
        self._double = _module()

    def __enter__(self) -> Self:
        command = [sys.executable, str(PROGRAM), str(self.folder), self._address, "0"]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout
        self.host = f"{self._address}:{self._process.stdout.readline().split()[1]}"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()

    def publish(self, name: str, weights: bytes, parameters: dict[str, Any] | None = None) -> str:
        """Add or replace a model ``namespace/model:tag``; return the digest of its manifest."""
        return str(self._double.publish(self.folder, name, weights, parameters))

    def fault(self, **fault: Any) -> None:
        """Say what goes wrong from now on; nothing without arguments. See the double's README."""
        request = urllib.request.Request(f"http://{self.host}/_fault", json.dumps(fault).encode())
        urllib.request.urlopen(request, timeout=10).close()

    @property
    def served(self) -> int:
        """Bytes of blobs sent since the start."""
        with urllib.request.urlopen(f"http://{self.host}/_served", timeout=10) as answer:
            return int(json.load(answer))
