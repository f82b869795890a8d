"""Deploy of the base role."""

from __future__ import annotations

from typing import Any

from pyinfra import host
from pyinfra.api import OperationError
from pyinfra.api.deploy import deploy
from pyinfra.api.operation import OperationMeta
from pyinfra.operations import files, server, systemd
from pyinfra.operations.util import any_changed

from gpurack.facts.debian import Platform, PlatformInfo
from gpurack.operations import bundle, packages, sysctl
from gpurack.rendering import block_options
from roles.base.settings import BaseSettings

ONLINE_SOURCES = ("docker.sources", "gpurack-compose.sources")
"""What the docker role writes on a host with a network: apt-get update would fail on them without one."""


@deploy("Base system")
def base(settings: BaseSettings) -> None:
    """Package sources and packages, then name, time, security updates, journal and kernel parameters."""
    platform = host.get_fact(Platform)
    package_sources(settings, platform)
    packages.installed(name="Install packages", packages=settings.all_packages, lock_timeout=settings.apt_lock_timeout)
    if settings.hostname:
        own_name(settings.hostname)
    time(settings, platform)
    security_updates(settings, platform)
    journal(settings)
    kernel_parameters(settings, platform)


def put(dest: str, what: str, **data: Any) -> OperationMeta:
    """Put the template named like a file on the host into place."""
    return files.template(
        name=what,
        src=f"templates/base/{dest.rpartition('/')[2]}.j2",
        dest=dest,
        mode="644",
        user="root",
        group="root",
        jinja_env_kwargs=block_options(),
        **data,
    )


def package_sources(settings: BaseSettings, platform: PlatformInfo) -> None:
    """Say where packages come from; first of all that a lock is waited for."""
    put("/etc/apt/apt.conf.d/10gpurack", "Wait for apt's lock", settings=settings)
    if settings.bundle.path:
        if platform.distribution != "debian":
            raise OperationError(f"a bundle has packages for Debian, and this host runs {platform.distribution}")
        bundle.repository(name="Bring the bundle's packages", bundle=settings.bundle.path, codename=platform.codename)
        for file in ONLINE_SOURCES:
            files.file(name=f"Ask no other source: {file}", path=f"/etc/apt/sources.list.d/{file}", present=False)
    put(
        f"/etc/apt/sources.list.d/{platform.distribution}.sources",
        "Set package sources",
        settings=settings,
        codename=platform.codename,
    )
    put("/etc/apt/sources.list", "Retire the old list of sources", distribution=platform.distribution)


def own_name(hostname: str) -> None:
    """Name the host; it must resolve before it is used, or sudo waits for DNS."""
    names = list(dict.fromkeys([hostname, hostname.partition(".")[0]]))
    server.etc_hosts(name="Resolve own name", ip="127.0.1.1", hostnames=names)
    server.hostname(name="Set host name", hostname=hostname)


def time(settings: BaseSettings, platform: PlatformInfo) -> None:
    """Time zone, and a clock kept right by chrony."""
    zone = f"/usr/share/zoneinfo/{settings.timezone}"
    files.link(name="Set time zone", path="/etc/localtime", target=zone, force=True, force_backup=False)
    options = put("/etc/default/chrony", "Set chrony's options", settings=settings, platform=platform)
    config = put("/etc/chrony/chrony.conf", "Configure chrony", settings=settings)
    systemd.service(name="Run chrony", service="chrony", running=True, enabled=True)
    systemd.service(name="Restart chrony", service="chrony", restarted=True, _if=any_changed(options, config))


def security_updates(settings: BaseSettings, platform: PlatformInfo) -> None:
    """Security updates every day, but never of what an upgrade would take down."""
    put(
        "/etc/apt/apt.conf.d/52gpurack-unattended-upgrades",
        "Configure security updates",
        settings=settings,
        distribution=platform.distribution,
    )
    if settings.unattended_upgrades:
        for timer in ("apt-daily.timer", "apt-daily-upgrade.timer"):
            systemd.service(name=f"Run {timer}", service=timer, running=True, enabled=True)


def journal(settings: BaseSettings) -> None:
    """Keep the journal over reboots, and within its bounds."""
    config = put("/etc/systemd/journald.conf.d/zz-gpurack-journald.conf", "Bound the journal", settings=settings)
    systemd.service(name="Restart journald", service="systemd-journald", restarted=True, _if=any_changed(config))


def kernel_parameters(settings: BaseSettings, platform: PlatformInfo) -> None:
    """Set kernel parameters now and at every boot."""
    values = settings.sysctl_for(container=platform.container)
    put("/etc/sysctl.d/zz-gpurack-sysctl.conf", "Keep kernel parameters", values=values)
    if values:
        sysctl.parameters(name="Set kernel parameters", values=values)
