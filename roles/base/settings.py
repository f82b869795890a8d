"""Settings of the base role."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated, Literal
from zoneinfo import available_timezones

from pydantic import Field, field_validator

from gpurack.bundle.settings import BundleSettings
from gpurack.settings import RoleSettings

# One unattended upgrade of these, and containers cannot reach the GPU ("Driver/library version mismatch"), the module
# does not match the kernel, or every container restarts. Python regular expressions, matched from a name's start.
NEVER_UNATTENDED = (
    "nvidia-",
    "libnvidia-",
    "xserver-xorg-video-nvidia",
    "firmware-nvidia-",
    "libcuda",
    "libnvcuvid",
    "libnvoptix",
    "libxnvctrl",
    "cuda($|-)",
    "libnccl",
    "libcudnn",
    "libcublas",
    "linux-image-",
    "linux-headers-",
    "linux-modules-",
    "linux-kbuild-",
    "linux-(generic|virtual|aws|azure|gcp|oracle|nvidia)",
    "docker($|-|[.])",
    "containerd",
    "runc$",
    "moby-",
)

Url = Annotated[str, Field(pattern=r"^https?://[^\s/]+[^\s]*$")]
Server = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9.:-]*$")]
PackageName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9+.-]+$")]


class BaseSettings(RoleSettings):
    """What every host needs."""

    bundle: BundleSettings = Field(BundleSettings(), description="Where packages come from without a network")
    hostname: str | None = Field(
        default=None, description="Host name, short or fully qualified; none: it is left as it is."
    )
    timezone: str = Field(default="Etc/UTC", description="Time zone, such as Europe/Berlin.")
    ntp_servers: tuple[Server, ...] = Field(default=(), description="NTP servers of your own.")
    ntp_pools: tuple[Server, ...] = Field(
        default=("2.debian.pool.ntp.org",), description="NTP pools; used beside ntp_servers."
    )
    mirror: Url | None = Field(default=None, description="Package mirror; none: the distribution's own.")
    security_mirror: Url | None = Field(
        default=None, description="Mirror of security updates; none: the distribution's own."
    )
    components: tuple[PackageName, ...] | None = Field(
        default=None,
        min_length=1,
        description="Archive components; none: all of the release, for NVIDIA's drivers are in the last ones.",
    )
    apt_proxy: Url | None = Field(default=None, description="HTTP proxy for packages, such as http://cache:3142.")
    apt_lock_timeout: timedelta = Field(
        default=timedelta(minutes=5),
        ge=timedelta(0),
        le=timedelta(hours=1),
        description="How long to wait while another process holds the package manager's lock.",
    )
    packages: tuple[PackageName, ...] = Field(default=(), description="Further packages to install.")
    unattended_upgrades: bool = Field(
        default=True, description="Install security updates daily, except for NEVER_UNATTENDED packages."
    )
    unattended_exclude: tuple[str, ...] = Field(
        default=(), description="Further packages never upgraded unattended: regular expressions from the name's start."
    )
    journal_max_size_mib: int = Field(
        default=2048, ge=64, le=1_048_576, description="Space the journal may take, in MiB."
    )
    journal_retention_days: int = Field(default=90, ge=1, le=3650, description="Journal entries older than this go.")
    sysctl: dict[Annotated[str, Field(pattern=r"^[a-z][A-Za-z0-9_./-]*$")], int | str] = Field(
        default={
            "vm.swappiness": 10,
            "kernel.panic": 10,
            "kernel.kptr_restrict": 1,
            "fs.inotify.max_user_instances": 1024,
            "fs.inotify.max_user_watches": 524_288,
            "net.core.somaxconn": 4096,
            "net.ipv4.tcp_syncookies": 1,
            "net.ipv4.conf.all.accept_redirects": 0,
            "net.ipv4.conf.all.send_redirects": 0,
            "net.ipv4.conf.all.accept_source_route": 0,
            "net.ipv4.icmp_echo_ignore_broadcasts": 1,
        },
        description="Kernel parameters; in a container only those of its own namespaces.",
    )
    clock: Literal["auto", "never"] = Field(
        default="auto", description='Whether chrony sets the clock; "auto": unless the host is a container.'
    )

    @field_validator("hostname")
    @classmethod
    def _hostname_is_one(cls, name: str | None) -> str | None:
        label = r"(?!-)[a-z0-9-]{1,63}(?<!-)"
        if name is not None and (len(name) > 64 or not re.fullmatch(rf"{label}(\.{label})*", name)):
            raise ValueError(
                "a host name has letters a-z, digits, hyphens inside, and dots between labels, 64 characters at most"
            )
        return name

    @field_validator("timezone")
    @classmethod
    def _timezone_exists(cls, name: str) -> str:
        known = available_timezones()
        if known and name not in known:
            raise ValueError("unknown time zone; names are like Etc/UTC or Europe/Berlin (timedatectl list-timezones)")
        if not re.fullmatch(r"[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+)*", name):
            raise ValueError("a time zone's name is like Etc/UTC or Europe/Berlin")
        return name

    @field_validator("unattended_exclude")
    @classmethod
    def _expressions_are_valid(cls, expressions: tuple[str, ...]) -> tuple[str, ...]:
        for expression in expressions:
            try:
                re.compile(expression)
            except re.error as error:
                raise ValueError(f"{expression!r} is not a regular expression: {error}") from error
            if '"' in expression or not expression.isprintable() or not expression:
                raise ValueError(f"{expression!r} cannot be written into apt's configuration")
        return expressions

    @field_validator("sysctl")
    @classmethod
    def _sysctl_values_fit_a_line(cls, values: dict[str, int | str]) -> dict[str, int | str]:
        for key, value in values.items():
            if not re.fullmatch(r"[A-Za-z0-9_./: -]+", str(value)):
                raise ValueError(f"the value of {key} must be a number, a word or several with spaces between")
        return values

    @property
    def never_unattended(self) -> tuple[str, ...]:
        """Every expression for packages that are not upgraded unattended."""
        return NEVER_UNATTENDED + self.unattended_exclude

    @property
    def all_packages(self) -> list[str]:
        """Every package the role installs."""
        own = ["ca-certificates", "chrony", "cron", "curl", "procps", "tzdata"]
        if self.unattended_upgrades:
            own.append("unattended-upgrades")
        return own + [package for package in self.packages if package not in own]

    def packages_for(self, distribution: str, codename: str) -> tuple[str, ...]:
        """All of them, on every release."""
        del distribution, codename
        return tuple(self.all_packages)

    def sysctl_for(self, *, container: bool) -> dict[str, int | str]:
        """Return the kernel parameters that are this host's own to set: in a container only its network's."""
        return {key: value for key, value in self.sysctl.items() if not container or key.startswith("net.")}
