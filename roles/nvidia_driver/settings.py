"""Settings of the nvidia_driver role."""

from __future__ import annotations

import re
from datetime import time, timedelta
from pathlib import Path
from typing import Literal
from urllib.parse import unquote

from pydantic import BaseModel, ConfigDict, Field, model_validator

from gpurack.gpu.driver_packages import MODULE_PACKAGE, NVIDIA_FIRST_BRANCH
from gpurack.gpu.driver_version import MINIMUM, at_least, branch_of
from gpurack.settings import MirrorUrl, RoleSettings

DEB = re.compile(r"(?P<package>[a-z0-9][a-z0-9+.-]+)_(?P<version>[^_/]+)_(?P<architecture>[a-z0-9]+)\.deb")


class RebootWindow(BaseModel):
    """Hours of the day in which hosts may be rebooted, by the hosts' own clocks."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    start: time = Field(description="From when on, such as 02:00")
    end: time = Field(description="Until when, such as 04:30; before start: the window goes over midnight")

    @model_validator(mode="after")
    def _has_length(self) -> RebootWindow:
        if self.start == self.end:
            raise ValueError("start and end are the same time: the window is empty")
        return self

    def __str__(self) -> str:
        return f"{self.start:%H:%M}-{self.end:%H:%M}"


class NvidiaDriverSettings(RoleSettings):
    """Driver, kernel module, persistence, and when a host may be rebooted for them."""

    source: Literal["auto", "debian", "ubuntu", "nvidia", "local"] = Field(
        "auto",
        description="Whose packages: the distribution's, those of NVIDIA's CUDA repository, or local_directory; "
        "auto: the distribution's, NVIDIA's where Debian has none for the cards (Blackwell, NVSwitch)",
    )
    branch: str | None = Field(
        None,
        pattern=r"^\d{3}$",
        description="Driver branch, such as 580; none: Debian's only one, 580 elsewhere",
    )
    version: str | None = Field(
        None,
        pattern=r"^\d{3}\.\d+(\.\d+)?$",
        description="Exact version, such as 550.163.01; none: the newest of the branch at the first run, kept then",
    )
    upgrade: bool = Field(False, description="Move to the branch's newest version in this run, instead of keeping")
    flavour: Literal["auto", "open", "proprietary"] = Field(
        "auto", description="Kernel module; auto: by the cards, and open from branch 560 on where both work"
    )
    kernel_module: Literal["dkms", "prebuilt"] = Field(
        "dkms", description="Built on the host for each kernel, or Ubuntu's built and signed ones"
    )
    backports: bool = Field(False, description="Take packages of Debian's backports too, for newer kernels")
    backports_mirror: MirrorUrl = Field("http://deb.debian.org/debian", description="Debian mirror for backports")
    repository: MirrorUrl = Field(
        "https://developer.download.nvidia.com/compute/cuda/repos",
        description="NVIDIA's repositories or a mirror of them, without the release",
    )
    keyring_sha256: str | None = Field(
        None,
        pattern=r"^[0-9a-f]{64}$",
        description="SHA-256 of cuda-keyring_1.1-1_all.deb there; none: the known one of the release",
    )
    local_directory: Path | None = Field(
        None, description="Directory on the control machine with .deb files, all of which are installed; for local"
    )
    reboot: Literal["never", "when_needed", "window"] = Field(
        "never", description="Whether a host may be rebooted where the driver needs it, one host at a time"
    )
    reboot_window: RebootWindow | None = Field(None, description="When it may be, for reboot=window")
    reboot_timeout: timedelta = Field(
        timedelta(minutes=15),
        ge=timedelta(seconds=30),
        le=timedelta(hours=2),
        description="How long host and driver may take to come back; big servers test their memory for minutes",
    )
    stop_containers: bool = Field(
        True, description="Stop containers that use GPUs while the driver is upgraded, and start them again"
    )

    @model_validator(mode="after")
    def _is_possible(self) -> NvidiaDriverSettings:
        if self.branch and int(self.branch) < int(branch_of(MINIMUM)):
            raise ValueError(f"branch {self.branch} is older than the least driver, {MINIMUM}")
        if self.version:
            at_least(self.version, "the driver asked for")
            if self.branch and branch_of(self.version) != self.branch:
                raise ValueError(f"version {self.version} is not of branch {self.branch}")
        branch = self.branch or (branch_of(self.version) if self.version else None)
        if self.source == "nvidia" and branch and int(branch) < NVIDIA_FIRST_BRANCH:
            raise ValueError(f"NVIDIA's repository has compute-only packages from branch {NVIDIA_FIRST_BRANCH} on")
        if self.kernel_module == "prebuilt" and self.source not in ("auto", "ubuntu"):
            raise ValueError(
                f"kernel_module prebuilt: modules that come built are Ubuntu's, not those of {self.source}"
            )
        if self.backports and self.source not in ("auto", "debian"):
            raise ValueError("backports are Debian's; with another source leave backports off")
        if (self.reboot == "window") != (self.reboot_window is not None):
            raise ValueError('reboot = "window" and reboot_window = {"start": "02:00", "end": "04:00"} belong together')
        if (self.source == "local") != (self.local_directory is not None):
            raise ValueError('source = "local" and local_directory belong together')
        if self.local_directory is not None:
            self._check_local()
        return self

    def _check_local(self) -> None:
        if self.local_directory is None or not self.local_directory.is_dir():
            raise ValueError(f"local_directory: {self.local_directory} is no directory on this machine")
        packages = self.local_packages
        modules = [name for name in packages if MODULE_PACKAGE.fullmatch(name)]
        if not modules:
            raise ValueError(
                f"local_directory: no package with the kernel module (nvidia-kernel-dkms, nvidia-open-kernel-dkms, "
                f"nvidia-dkms-580, ...) in {self.local_directory}; files are named package_version_arch.deb"
            )
        for name in modules:
            at_least(packages[name], f"local_directory: {name}")

    @property
    def local_files(self) -> dict[str, Path]:
        """Package -> its file in local_directory; of several versions the last by file name."""
        if self.local_directory is None:
            return {}
        files = sorted(self.local_directory.glob("*.deb"))
        return {match["package"]: file for file in files if (match := DEB.fullmatch(file.name))}

    @property
    def local_packages(self) -> dict[str, str]:
        """Package -> version of the files in local_directory."""
        return {
            package: unquote(file.name.split("_")[1]).partition(":")[2] or unquote(file.name.split("_")[1])
            for package, file in self.local_files.items()
        }
