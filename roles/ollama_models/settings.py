"""Settings of the ollama_models role."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from gpurack.ollama.names import ModelName
from gpurack.rollout.acceptance import Acceptance
from gpurack.settings import Location, RoleSettings


def _digest(value: str) -> str:
    bare = value.lower().removeprefix("sha256:")
    if re.fullmatch(r"[0-9a-f]{64}", bare):
        return f"sha256:{bare}"
    if re.fullmatch(r"[0-9a-f]{12}", bare):
        raise ValueError(
            "that is the short ID of `ollama list`; give all 64 digits, as `gpurack models list` shows them"
        )
    raise ValueError("expected sha256: and 64 hexadecimal digits")


def _local(name: ModelName) -> ModelName:
    if name.in_cloud:
        raise ValueError("a model of Ollama's cloud is answered by ollama.com: what is asked leaves the building")
    if name.is_base or name.is_kept:
        raise ValueError("names that begin with base-of. or kept-from. are gpurack's own")
    return name


Digest = Annotated[str, AfterValidator(_digest)]
Registry = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*(:\d{1,5})?$")]
Probability = Annotated[float, Field(ge=0, le=1)]
Penalty = Annotated[float, Field(ge=-2, le=2)]


class Parameters(BaseModel):
    """What a model is run with where a request says nothing else; names as in a Modelfile (``api.Options``)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    num_ctx: int | None = Field(None, ge=1, le=16_777_216, description="Context length in tokens; costs memory")
    num_gpu: int | None = Field(None, ge=-1, le=1000, description="Layers on the GPU; -1: as many as fit, 0: none")
    num_batch: int | None = Field(None, ge=1, le=65536, description="Tokens of a prompt that are read at once")
    num_thread: int | None = Field(None, ge=0, le=1024, description="CPU threads; 0: Ollama decides")
    main_gpu: int | None = Field(None, ge=0, le=63, description="GPU for what is not divided")
    use_mmap: bool | None = Field(None, description="Map the model's file into memory instead of reading it")
    draft_num_predict: int | None = Field(None, ge=0, le=1024, description="Tokens that a draft model runs ahead")
    num_keep: int | None = Field(None, ge=-1, description="Tokens at the beginning kept when the context is full")
    num_predict: int | None = Field(None, ge=-2, description="Longest answer in tokens; -1: no limit")
    seed: int | None = Field(None, description="Start of the random numbers; the same seed gives the same answer")
    temperature: float | None = Field(None, ge=0, le=2, description="0: always the likeliest token")
    top_k: int | None = Field(None, ge=0, description="How many of the likeliest tokens are chosen from")
    top_p: Probability | None = Field(None, description="Share of probability that is chosen from")
    min_p: Probability | None = Field(None, description="Least probability, compared with the likeliest token's")
    typical_p: Probability | None = Field(None, description="Locally typical sampling; 1: off")
    repeat_last_n: int | None = Field(None, ge=-1, description="How far back repetitions are looked for")
    repeat_penalty: float | None = Field(None, ge=0, le=10, description="Against repetitions; 1: none")
    presence_penalty: Penalty | None = Field(None, description="Against tokens that were used")
    frequency_penalty: Penalty | None = Field(None, description="Against tokens that were used often")
    stop: tuple[Annotated[str, Field(min_length=1)], ...] | None = Field(
        None, description="Texts at which an answer ends"
    )

    @property
    def declared(self) -> dict[str, Any]:
        """The parameters that are given, as JSON has them."""
        return self.model_dump(mode="json", exclude_none=True)


class OllamaModel(BaseModel):
    """One model: where it comes from, and what it is run with."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    state: Literal["present", "absent"] = Field("present", description="Whether the host has it")
    digest: Digest | None = Field(
        None, description="Digest of the manifest its registry must serve; another one on the host is pulled again"
    )
    base: str | None = Field(
        None, description="Model it is made from, pulled if need be; empty: its own name is pulled"
    )
    gguf: Path | None = Field(
        None, description="GGUF file on the control machine it is made from, relative to the repository"
    )
    safetensors: Path | None = Field(
        None, description="Folder on the control machine with safetensors, config.json and tokenizer it is made from"
    )
    sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$", description="SHA-256 the GGUF file must have")
    quantize: Literal["q8_0", "q4_K_S", "q4_K_M"] | None = Field(
        None, description="What Ollama quantises a file of F16, BF16 or F32 to"
    )
    system: str | None = Field(None, min_length=1, description="System prompt")
    template: str | None = Field(None, min_length=1, description="Template of the prompt, in Go's syntax")
    parameters: Parameters = Field(
        default_factory=lambda: Parameters.model_validate({}),
        description="What it is run with; empty: as its maker says",
    )
    preload: bool = Field(False, description="Load it in every run, so that nobody waits for it")
    keep_alive: timedelta | Literal["forever"] | None = Field(
        None, description="How long it stays in memory after preloading; empty: forever"
    )

    acceptance: Acceptance | None = Field(None, description="Limits of its own for a roll-out; empty: the role's")

    @field_validator("base")
    @classmethod
    def _name(cls, value: str | None) -> str | None:
        return None if value is None else str(_local(ModelName.parse(value)))

    @field_validator("keep_alive")
    @classmethod
    def _not_short(cls, value: timedelta | str | None) -> timedelta | str | None:
        if isinstance(value, timedelta) and value < timedelta(seconds=1):
            raise ValueError('expected one second or more, or "forever"')
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        sources = [name for name in ("base", "gguf", "safetensors") if getattr(self, name) is not None]
        if len(sources) > 1:
            raise ValueError(f"give one of {' and '.join(sources)}, not both")
        if self.sha256 and not self.gguf:
            raise ValueError("sha256 is the checksum of a file: it needs gguf")
        if self.quantize and not self.is_file:
            raise ValueError("quantize works on files: it needs gguf or safetensors")
        if self.digest and self.is_file:
            raise ValueError("digest is what a registry serves; pin a file with sha256")
        if self.digest and self.base:
            raise ValueError(
                "digest is what a registry serves for this name; declare the base as a model and pin it there"
            )
        if self.keep_alive is not None and not self.preload:
            raise ValueError("keep_alive needs preload; the server's own keep_alive is in role ollama")
        if self.state == "absent" and (given := self.model_fields_set - {"state"}):
            raise ValueError(f"an absent model has no {', '.join(sorted(given))}")
        return self

    @property
    def present(self) -> bool:
        """Whether the host is to have it."""
        return self.state == "present"

    @property
    def is_file(self) -> bool:
        """Whether it is made from a file on the control machine."""
        return self.gguf is not None or self.safetensors is not None

    @property
    def is_derived(self) -> bool:
        """Whether it differs from what a registry serves under its name, so that it is made on the host."""
        return bool(self.is_file or self.base or self.system or self.template or self.parameters.declared)


class OllamaModelsSettings(RoleSettings):
    """Models that Ollama has, their parameters, and what may be done to get there."""

    models: dict[str, OllamaModel] = Field(
        {}, description="Models by name, `deepseek-r1:7b`; a name without tag means `latest`"
    )
    remove_unlisted: bool = Field(False, description="Remove models that are not declared; otherwise they are reported")
    parallel_pulls: int = Field(1, ge=1, le=16, description="Models pulled at the same time on a host")
    disk_reserve_gib: int = Field(
        10, ge=0, le=100_000, description="Room that is left free on the models' disk, in GiB"
    )
    capacity: Literal["enforce", "warn"] = Field(
        "enforce", description="Whether a model that does not fit the host's memory stops the host"
    )
    acceptance: Acceptance = Field(
        default_factory=lambda: Acceptance.model_validate({}),
        description="What a model's answers must hold for a roll-out to go on (`gpurack rollout`)",
    )
    insecure_registries: tuple[Registry, ...] = Field(
        (), description="Registries that are spoken to over plain HTTP, such as `registry.example.org:5000`"
    )

    @field_validator("models")
    @classmethod
    def _names(cls, value: dict[str, OllamaModel]) -> dict[str, OllamaModel]:
        named: dict[str, OllamaModel] = {}
        given: dict[str, str] = {}
        for text, model in value.items():
            try:
                name = _local(ModelName.parse(text))
            except ValueError as error:
                raise ValueError(f"{text!r}: {error}") from None
            if name.key in given:
                raise ValueError(f"{given[name.key]!r} and {text!r} are the same model")
            given[name.key] = text
            named[str(name)] = model
        return named

    @model_validator(mode="after")
    def _bases(self) -> Self:
        keys = {ModelName.parse(name).key: model for name, model in self.models.items()}
        for name, model in self.models.items():
            if not model.base:
                continue
            base = keys.get(ModelName.parse(model.base).key)
            if ModelName.parse(model.base).key == ModelName.parse(name).key:
                raise ValueError(f"models.{name}: base is its own name; leave base out")
            if base and not base.present:
                raise ValueError(f"models.{name}: its base {model.base} is declared absent")
            if base and base.base:
                raise ValueError(
                    f"models.{name}: its base {model.base} has a base too; name {base.base} as base of both"
                )
        return self

    def problems_on(self, host: str, data: Mapping[str, Any]) -> Iterator[tuple[Location, str]]:
        """Yield models on a host without Ollama, and more to preload than the server keeps loaded."""
        del host
        server = data.get("ollama")
        server = server if isinstance(server, Mapping) else {}
        if self.models and not server.get("enabled", True):
            yield ("models",), "role ollama is disabled on this host: nothing could serve them"
        preloaded = [name for name, model in self.models.items() if model.preload]
        most = server.get("max_loaded_models")
        if isinstance(most, int) and len(preloaded) > most:
            yield (
                ("models",),
                f"{len(preloaded)} models are preloaded, and ollama.max_loaded_models is {most}: "
                "each would push another out of memory",
            )

    @property
    def declared(self) -> dict[ModelName, OllamaModel]:
        """The models by their parsed names."""
        return {ModelName.parse(name): model for name, model in self.models.items()}
