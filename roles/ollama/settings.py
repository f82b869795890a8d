"""Settings of the ollama role."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import timedelta
from ipaddress import IPv4Address, IPv6Address
from pathlib import PurePosixPath
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from gpurack.bundle.settings import BundleSettings
from gpurack.images import ImageSource
from gpurack.service import Publish
from gpurack.settings import Duration, Location, RoleSettings, Seconds

SYSTEM_DIRECTORIES = frozenset(
    {"/", "/bin", "/boot", "/dev", "/etc", "/home", "/lib", "/mnt", "/opt", "/proc", "/root", "/run", "/sbin", "/srv"}
    | {"/sys", "/tmp", "/usr", "/var", "/var/lib", "/var/log", "/media"}  # noqa: S108 - refused, not used
)


def _own_directory(value: str) -> str:
    path = PurePosixPath(value)
    if not path.is_absolute() or ".." in path.parts:
        raise ValueError("expected an absolute path such as /srv/ollama, without ..")
    if str(path) in SYSTEM_DIRECTORIES:
        raise ValueError(f"{path} is a system directory; give the models one of their own, such as /srv/ollama")
    if re.search(r"[:$\s]", value):
        raise ValueError("the path of a container volume has no colon, dollar sign or blank")
    return str(path)


Directory = Annotated[str, AfterValidator(_own_directory)]
Origin = Annotated[str, Field(pattern=r"^(\*|[a-z][a-z0-9+.-]*://[^\s,\"'$]+)$")]
DeviceId = Annotated[str, Field(pattern=r"^(\d+(:\d+)?|GPU-[0-9a-f-]+|MIG-[0-9a-f/-]+)$")]


class OllamaSettings(RoleSettings):
    """Hardware, address and server environment of Ollama."""

    moved: ClassVar[Mapping[str, str]] = {
        "image": "images.toml names the repository, images.mirrors another registry",
        "version": 'set images = {"overrides": {"ollama": {"tag": ...}}}, or images.toml',
        "digest": 'set images = {"overrides": {"ollama": {"digest": ...}}}, or images.toml',
        "mirror": 'set images = {"mirrors": {"docker.io": ...}}',
        "image_archive": 'set images = {"archives": {"ollama": ...}}',
        "image_archive_sha256": 'set images = {"archives": {"ollama": {"path": ..., "sha256": ...}}}',
    }

    images: ImageSource = Field(ImageSource(), description="Where the image comes from")
    bundle: BundleSettings = Field(BundleSettings(), description="Where models come from without a network")
    accelerator: Literal["nvidia", "cpu"] = Field("nvidia", description="What models run on")
    gpu_count: Annotated[int, Field(ge=1, le=64)] | Literal["all"] = Field(
        "all", description="How many GPUs the server may use, the first ones by index"
    )
    gpu_device_ids: tuple[DeviceId, ...] = Field(
        (),
        description="The very GPUs it may use: index, GPU UUID, MIG UUID, or MIG device `0:1`; replaces gpu_count",
    )
    spread: bool = Field(False, description="Spread each model over all GPUs, not only over as many as it needs to fit")
    models_dir: Directory = Field("/srv/ollama", description="Where models and the server's key are kept on the host")
    publish_address: IPv4Address | IPv6Address = Field(
        IPv4Address("127.0.0.1"), description="Host address the API listens on; see the README before widening it"
    )
    publish_port: int = Field(11434, ge=1, le=65535, description="Host port of the API")
    keep_alive: timedelta | Literal["forever"] = Field(
        timedelta(minutes=5), description="How long an idle model stays in memory"
    )
    num_parallel: int = Field(1, ge=1, le=1024, description="Requests a model answers at once; each costs its context")
    max_loaded_models: int | None = Field(
        None, ge=1, le=64, description="Models in memory at once; empty: Ollama decides by the hardware"
    )
    max_queue: int = Field(512, ge=1, description="Requests that may wait before the server answers 503")
    context_length: int | None = Field(
        None, ge=256, le=16_777_216, description="Default context length in tokens; empty: Ollama decides by VRAM"
    )
    kv_cache_type: Literal["f16", "q8_0", "q4_0"] = Field(
        "f16", description="Precision of the context cache; q8_0 halves its memory, q4_0 quarters it"
    )
    flash_attention: bool | None = Field(
        None, description="Flash attention; empty: Ollama decides by model and hardware"
    )
    no_cloud: bool = Field(True, description="Models of Ollama's cloud and its web search are off: data stays here")
    origins: tuple[Origin, ...] = Field((), description="Further browser origins that may call the API")
    health_interval: Seconds = Field(timedelta(seconds=10), description="Time between two health checks")
    health_start_period: Duration = Field(
        timedelta(seconds=60), description="Time in which a failed health check does not count yet"
    )
    ready_timeout: Seconds = Field(
        timedelta(minutes=3), description="Longest wait for the service to become healthy in a run"
    )

    @field_validator("keep_alive")
    @classmethod
    def _not_negative(cls, value: timedelta | str) -> timedelta | str:
        if isinstance(value, timedelta) and value < timedelta(0):
            raise ValueError('a duration cannot be negative; "forever" keeps models in memory')
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.kv_cache_type != "f16" and self.flash_attention is not True:
            raise ValueError(f"kv_cache_type={self.kv_cache_type} works only with flash_attention=True")
        if self.accelerator == "cpu" and (self.gpu_device_ids or self.gpu_count != "all" or self.spread):
            raise ValueError("gpu_count, gpu_device_ids and spread are for accelerator=nvidia, not cpu")
        if self.gpu_device_ids and self.gpu_count != "all":
            raise ValueError("give gpu_count or gpu_device_ids, not both")
        return self

    def problems_on(self, host: str, data: Mapping[str, Any]) -> Iterator[tuple[Location, str]]:
        """Yield a count of GPUs on a host that divides them: a divided GPU as a whole can be given to nobody."""
        del host
        mig = data.get("mig")
        layouts = mig.get("layouts", ()) if isinstance(mig, Mapping) and mig.get("enabled", True) else ()
        divided = any(isinstance(layout, Mapping) and layout.get("profiles") for layout in layouts)
        if self.accelerator == "nvidia" and self.gpu_count != "all" and divided:
            yield ("gpu_count",), "mig.layouts divides GPUs here: name MIG devices in gpu_device_ids, such as 0:0"

    @property
    def image_names(self) -> tuple[str, ...]:
        """The one image the role runs."""
        return ("ollama",)

    @property
    def publish(self) -> str:
        """Address and port of the API on the host, IPv6 in brackets."""
        return str(Publish(address=self.publish_address, port=self.publish_port))

    @property
    def local_address(self) -> str:
        """Address and port of the API for programs on the host itself."""
        return Publish(address=self.publish_address, port=self.publish_port).local

    @property
    def url(self) -> str:
        """URL of the API for programs on the host itself."""
        return f"http://{self.local_address}"

    @property
    def environment(self) -> dict[str, str]:
        """Environment of the server: names as in Ollama's envconfig."""
        forever = self.keep_alive == "forever"
        values: dict[str, str | int | None] = {
            # Inside the container; who can reach it is decided by `publish`.
            "OLLAMA_HOST": "0.0.0.0:11434",
            "OLLAMA_KEEP_ALIVE": "-1" if forever else seconds(self.keep_alive),
            "OLLAMA_NUM_PARALLEL": self.num_parallel,
            "OLLAMA_MAX_LOADED_MODELS": self.max_loaded_models,
            "OLLAMA_MAX_QUEUE": self.max_queue,
            "OLLAMA_CONTEXT_LENGTH": self.context_length,
            "OLLAMA_KV_CACHE_TYPE": self.kv_cache_type,
            "OLLAMA_FLASH_ATTENTION": None if self.flash_attention is None else int(self.flash_attention),
            "OLLAMA_SCHED_SPREAD": 1 if self.spread else None,
            "OLLAMA_NO_CLOUD": int(self.no_cloud),
            "OLLAMA_ORIGINS": ",".join(self.origins) or None,
        }
        return {name: str(value) for name, value in values.items() if value is not None}


def seconds(value: timedelta | str) -> str:
    """Return a duration as Compose and Ollama read it, such as ``300s``; fractions are cut."""
    assert isinstance(value, timedelta)  # noqa: S101 - "forever" is handled by the caller
    return f"{int(value.total_seconds())}s"
