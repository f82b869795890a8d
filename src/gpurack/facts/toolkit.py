"""NVIDIA's container toolkit on a host: its configuration and CDI specification, and the engine that uses them."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from pyinfra.api.facts import FactBase

from gpurack.gpu.cdi import CdiSpec, parse
from gpurack.gpu.runtime import CDI_SPEC

GENERATE = "nvidia-ctk --quiet cdi generate --device-name-strategy=index --device-name-strategy=uuid"
CONFIG = "/etc/nvidia-container-runtime/config.toml"


class EngineVersion(FactBase[str]):
    """Returns what ``dockerd --version`` says; empty without an engine."""

    default = str

    def command(self) -> str:
        """Print the version."""
        return "if command -v dockerd >/dev/null 2>&1; then dockerd --version; fi"

    def process(self, output: Iterable[str]) -> str:
        """Join the lines."""
        return " ".join(output).strip()


@dataclass(frozen=True)
class CdiState:
    """A host's CDI specification.

    Attributes:
        spec: the one in ``/etc/cdi``; None where there is none, or something else.
        current: what nvidia-ctk would write now; None where it cannot say.
        error: why it cannot, in its own words.
    """

    spec: CdiSpec | None = None
    current: CdiSpec | None = None
    error: str = ""


class CdiSpecs(FactBase[CdiState]):
    """Returns the :class:`CdiState`; nothing is written."""

    default = CdiState

    def command(self) -> str:
        """Print the file and what would be generated now, each line marked with what it belongs to."""
        return (
            f"if test -f {CDI_SPEC}; then sed 's/^/file /' {CDI_SPEC}; fi; "
            f"if command -v nvidia-ctk >/dev/null 2>&1; then {GENERATE} 2>&1 | sed 's/^/now /'; fi"
        )

    def process(self, output: Iterable[str]) -> CdiState:
        """Parse both."""
        lines: dict[str, list[str]] = {"file": [], "now": []}
        for line in output:
            mark, _, text = line.partition(" ")
            lines.setdefault(mark, []).append(text)
        current = parse(lines["now"])
        error = "" if current else " ".join(" ".join(lines["now"]).split())
        return CdiState(parse(lines["file"]), current, error)


@dataclass
class ToolkitConfig:
    """The container toolkit's configuration; ``error`` says why there are no values."""

    values: dict[str, Any] = field(default_factory=dict)
    error: str = ""

    def get(self, name: str) -> Any:
        """Return the value of a dotted name, such as ``nvidia-container-runtime.mode``; None where it is not set."""
        value: Any = self.values
        for part in name.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return value


class ToolkitConfiguration(FactBase[ToolkitConfig]):
    """Returns the :class:`ToolkitConfig`."""

    default = staticmethod(lambda: ToolkitConfig(error=f"{CONFIG} is missing"))

    def command(self) -> str:
        """Print the file."""
        return f"if test -f {CONFIG}; then cat {CONFIG}; fi"

    def process(self, output: Iterable[str]) -> ToolkitConfig:
        """Parse TOML; a file that is none is an error in the result, not of the fact."""
        lines = list(output)
        if not lines:
            return ToolkitConfig(error=f"{CONFIG} is empty or missing")
        try:
            return ToolkitConfig(tomllib.loads("\n".join(lines)))
        except tomllib.TOMLDecodeError as error:
            return ToolkitConfig(error=f"{CONFIG} is not TOML: {error}")
