"""Settings of the cuda role."""

from __future__ import annotations

from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, model_validator

from gpurack.gpu.cuda import required
from gpurack.settings import RoleSettings


def _url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query or parts.fragment:
        raise ValueError("expected a URL such as https://mirror.example.org/cuda, without user or query")
    return value.rstrip("/")


class CudaSettings(RoleSettings):
    """CUDA toolkit, if any."""

    toolkit_version: str | None = Field(
        None,
        pattern=r"^\d+\.\d+$",
        description="Toolkit to install, such as 12.4; none: nothing, the driver brings what containers need",
    )
    source: Literal["debian", "nvidia"] = Field(
        "debian", description="Whose packages: Debian's one version, or NVIDIA's CUDA repository"
    )
    minor_version_compatibility: bool = Field(
        False, description="Accept a driver older than the toolkit's own, where NVIDIA says that programs start"
    )
    repository: Annotated[str, AfterValidator(_url)] = Field(
        "https://developer.download.nvidia.com/compute/cuda/repos",
        description="NVIDIA's repositories or a mirror of them, without the release; for source=nvidia",
    )
    keyring_sha256: str | None = Field(
        None,
        pattern=r"^[0-9a-f]{64}$",
        description="SHA-256 of cuda-keyring_1.1-1_all.deb there; none: the known one of the release",
    )

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.toolkit_version is not None:
            required(self.toolkit_version)
        return self
