"""Settings of the searxng role."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import timedelta
from ipaddress import IPv4Network, IPv6Network
from typing import Annotated, Any

from pydantic import Field, StringConstraints, field_validator

from gpurack.images import ImageSource
from gpurack.secrets import Secret, SecretError, Shape
from gpurack.service import UNFIT, Publish, port_clashes
from gpurack.settings import Duration, Location, RoleSettings, Seconds

Engine = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9 ._-]{0,63}$")]
ProxyUrl = Annotated[str, StringConstraints(pattern=r"^(https?|socks5h?)://[A-Za-z0-9.-]+:\d{1,5}$")]


class SearxngSettings(RoleSettings):
    """SearXNG: engines that are asked, and who may ask."""

    enabled: bool = Field(False, description="Apply the role to the host; turning it off removes nothing.")
    images: ImageSource = Field(ImageSource(), description="Where the images come from")
    secret_key: Annotated[Secret, Shape("hex", 32)] = Field(
        Secret.stored("searxng_secret_key"), description="Key that SearXNG signs with"
    )
    engines: tuple[Engine, ...] = Field(
        ("duckduckgo", "wikipedia"),
        min_length=1,
        description="Engines that are asked, by their names in SearXNG's settings.yml; all others are removed",
    )
    language: str = Field(
        "auto", pattern=r"^(auto|all|[a-z]{2,3}(-[A-Z]{2})?)$", description="Language of searches that name none"
    )
    safe_search: int = Field(0, ge=0, le=2, description="0 none, 1 moderate, 2 strict")
    proxy: ProxyUrl | None = Field(
        None, description="Proxy that all engines are asked through; with it the container needs no other way out"
    )
    request_timeout_seconds: float = Field(3.0, gt=0, le=60, description="Longest wait for an engine")
    limiter: bool = Field(False, description="Limit and filter requests by address, with Valkey; for people's browsers")
    limiter_trusted: tuple[IPv4Network | IPv6Network, ...] = Field(
        (), description="Networks the limiter lets pass; AnythingLLM's must be one, it looks like a bot"
    )
    publish: Publish | None = Field(
        None, description="Where it is reached from outside of Docker's networks; empty: nowhere"
    )
    health_interval: Seconds = Field(timedelta(seconds=10), description="Time between two health checks")
    health_start_period: Duration = Field(
        timedelta(seconds=60), description="Time in which a failed health check does not count yet"
    )
    ready_timeout: Seconds = Field(
        timedelta(minutes=3), description="Longest wait for the services to become healthy in a run"
    )

    @field_validator("engines")
    @classmethod
    def _each_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) != len(value):
            raise ValueError("an engine is there twice")
        return value

    @property
    def image_names(self) -> tuple[str, ...]:
        """Names in ``images.toml`` of the images that run."""
        return ("searxng", "valkey") if self.limiter else ("searxng",)

    def problems_on(self, host: str, data: Mapping[str, Any]) -> Iterator[tuple[Location, str]]:
        """Yield a port that two services claim, and a limiter that would shut AnythingLLM out."""
        del host
        yield from port_clashes("searxng", data)
        anythingllm = data.get("anythingllm")
        if (
            self.limiter
            and not self.limiter_trusted
            and isinstance(anythingllm, Mapping)
            and anythingllm.get("enabled") is True
        ):
            yield (
                ("limiter_trusted",),
                "the limiter takes AnythingLLM's agent for a bot: name the addresses of Docker's networks here "
                "(docker.address_pools), or turn the limiter off",
            )
        try:
            if UNFIT.search(self.secret_key.reveal()):
                yield ("secret_key",), "a quotation mark, backslash or line break cannot be in this secret"
        except SecretError:  # reported by itself
            pass
