"""Names of models, read as Ollama reads them (``types/model/name.go`` and ``internal/modelref`` of Ollama 0.32)."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Self

REGISTRY = "registry.ollama.ai"
NAMESPACE = "library"
TAG = "latest"

_PARTS = {
    "registry": re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,349}"),
    "namespace": re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,79}"),
    "model": re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}"),
    "tag": re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}"),
}
_MAY_HOLD = {
    "registry": "letters, digits and _ . : -, not beginning with . : -",
    "namespace": "up to 80 letters, digits and _ -, not beginning with -",
    "model": "up to 80 letters, digits and _ . -, not beginning with . -",
    "tag": "up to 80 letters, digits and _ . -, not beginning with . -",
}
_BASE_OF = "base-of."
_KEPT = "kept-from."


@dataclass(frozen=True)
class ModelName:
    """A model's full name; two names are one model when their :attr:`key` is the same.

    Attributes:
        registry: host and port it comes from, such as ``registry.ollama.ai`` or ``hf.co``.
        namespace: whose it is; ``library`` are Ollama's own.
        model: such as ``deepseek-r1``.
        tag: such as ``7b`` or ``7b-qwen-distill-q4_K_M``.
    """

    registry: str
    namespace: str
    model: str
    tag: str

    def __post_init__(self) -> None:
        for part, pattern in _PARTS.items():
            value = getattr(self, part)
            if not pattern.fullmatch(value):
                raise ValueError(f"{part} {value!r} of a model's name: expected {_MAY_HOLD[part]}")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the name in ``[[registry/]namespace/]model[:tag]``; what is left out is Ollama's default.

        Raises:
            ValueError: not a name; the message says which part, and what it may hold.
        """
        if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text):
            raise ValueError(
                "a model's name has no http:// or https:// in front; see insecure_registries for plain HTTP"
            )
        if "@" in text:
            raise ValueError("a model's name has no digest behind @; give it as digest")
        rest, tag = text, TAG
        if text.rfind(":") > text.rfind("/"):
            rest, _, tag = text.rpartition(":")
        *before, model = rest.split("/")
        if len(before) > 2:
            raise ValueError("expected [[registry/]namespace/]model[:tag], such as deepseek-r1:7b: too many slashes")
        namespace = before[-1] if before else NAMESPACE
        registry = before[0] if len(before) == 2 else REGISTRY
        return cls(registry, namespace, model, tag)

    def __str__(self) -> str:
        """Return the shortest form that still has a tag, as Ollama lists it."""
        text = f"{self.model}:{self.tag}"
        if self.registry.lower() != REGISTRY:
            return f"{self.registry}/{self.namespace}/{text}"
        return text if self.namespace.lower() == NAMESPACE else f"{self.namespace}/{text}"

    @property
    def key(self) -> str:
        """What names of one model have in common: Ollama does not tell capital letters from small ones."""
        return self.path.lower()

    @property
    def path(self) -> str:
        """Path of its manifest below ``manifests/`` in Ollama's store."""
        return f"{self.registry}/{self.namespace}/{self.model}/{self.tag}"

    @property
    def in_cloud(self) -> bool:
        """Whether Ollama would send what it is asked to ollama.com instead of answering itself."""
        tag = self.tag.lower()
        return tag == "cloud" or tag.endswith("-cloud")

    @property
    def base(self) -> ModelName:
        """Name under which a model is kept as its registry has it, when this name has parameters of its own."""
        return replace(self, registry=_BASE_OF + self.registry)

    @property
    def kept(self) -> ModelName:
        """Name under which a model is kept while another version of it is pulled."""
        return replace(self, registry=_KEPT + self.registry)

    @property
    def is_base(self) -> bool:
        """Whether it is the :attr:`base` of another."""
        return self.registry.startswith(_BASE_OF)

    @property
    def is_kept(self) -> bool:
        """Whether it is the :attr:`kept` of another."""
        return self.registry.startswith(_KEPT)

    @property
    def origin(self) -> ModelName:
        """The model whose :attr:`base` or :attr:`kept` this is; itself otherwise."""
        return replace(self, registry=self.registry.removeprefix(_BASE_OF).removeprefix(_KEPT))
