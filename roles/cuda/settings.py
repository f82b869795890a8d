"""Settings of the cuda role."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from gpurack.gpu.cuda import required
from gpurack.settings import MirrorUrl, RoleSettings


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
    repository: MirrorUrl = Field(
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
