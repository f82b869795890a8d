"""Settings of the container_toolkit role."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from gpurack.gpu.runtime import Mode
from gpurack.settings import MirrorUrl, RoleSettings


class ContainerToolkitSettings(RoleSettings):
    """NVIDIA's container toolkit, and how containers get GPUs."""

    source: Literal["nvidia", "directory"] = Field(
        "nvidia", description="NVIDIA's apt repository, or .deb files on the control machine; Debian has no packages"
    )
    repository: MirrorUrl = Field(
        "https://nvidia.github.io/libnvidia-container",
        description="NVIDIA's repository or a mirror of it; below it are gpgkey and stable/deb/<architecture>",
    )
    repository_key_sha256: str = Field(
        "c880576d6cf75a48e5027a871bac70fd0421ab07d2b55f30877b21f1c87959c9",
        pattern=r"^[0-9a-f]{64}$",
        description="SHA-256 of <repository>/gpgkey; default: key C95B321B61E88C1809C4F759DDCAE044F796ECB0",
    )
    directory: Path | None = Field(
        None, description="Where the four .deb files are, relative to the repository's root; for source=directory"
    )
    version: str | None = Field(
        None,
        pattern=r"^[0-9][A-Za-z0-9.+~]*-[A-Za-z0-9.+~]+$",
        description="Version of all four packages, held there, such as 1.18.1-1; empty: the newest at installation",
    )
    mode: Mode | Literal["auto"] = Field(
        "auto", description="How containers get GPUs: CDI devices where Docker is 25 or later, else NVIDIA's runtime"
    )

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.source == "nvidia" and self.directory is not None:
            raise ValueError('directory is for source="directory"')
        if self.source != "directory" or not self.enabled:
            return self
        if self.directory is None:
            raise ValueError('source="directory" needs directory')
        if self.version is not None:
            raise ValueError('version is for source="nvidia"; with source="directory" the files say it')
        if not self.directory.is_dir():
            raise ValueError(f"{self.directory} is no directory; its path starts at the repository's root")
        return self
