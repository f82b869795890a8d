"""A model as a registry serves it, before anything is made of it."""

from __future__ import annotations

from dataclasses import dataclass

from gpurack.ollama.names import ModelName


@dataclass(frozen=True)
class PulledModel:
    """A model to be had from a registry.

    Attributes:
        name: its name.
        digest: ``sha256:...`` its manifest must have; None for any.
        plain: its registry is spoken to over plain HTTP.
    """

    name: ModelName
    digest: str | None = None
    plain: bool = False
