"""Controls of the base role."""

from __future__ import annotations

import re
from typing import Any

from gpurack.controls import NotApplicable, control
from roles.base.settings import BaseSettings

# Names as they are in the archives of Debian, Ubuntu, NVIDIA and Docker.
TAKES_SERVICE_DOWN = (
    "nvidia-driver",
    "nvidia-driver-cuda",
    "nvidia-open",
    "nvidia-kernel-dkms",
    "nvidia-open-kernel-dkms",
    "nvidia-smi",
    "nvidia-dkms-550",
    "nvidia-driver-550-server",
    "nvidia-utils-550",
    "nvidia-fabricmanager-550",
    "nvidia-container-toolkit",
    "nvidia-container-toolkit-base",
    "libnvidia-ml1",
    "libnvidia-container1",
    "libnvidia-container-tools",
    "libnvidia-compute-550-server",
    "libcuda1",
    "cuda-drivers",
    "cuda-toolkit-12-4",
    "linux-image-amd64",
    "linux-image-cloud-amd64",
    "linux-image-6.12.48+deb13-amd64",
    "linux-image-generic",
    "linux-headers-amd64",
    "linux-modules-nvidia-550-generic",
    "linux-generic",
    "docker.io",
    "docker-ce",
    "docker-ce-cli",
    "docker-cli",
    "docker-compose",
    "docker-compose-plugin",
    "containerd",
    "containerd.io",
    "runc",
)


def is_container(host: Any) -> bool:
    """Tell whether kernel and clock belong to another host."""
    return bool(host.run("systemd-detect-virt --quiet --container").rc == 0)


def apt_config(host: Any, name: str) -> list[str]:
    """Return the values apt has for a setting, all files read."""
    lines = host.check_output("apt-config dump %s", name).splitlines()
    values = [re.fullmatch(r'\S+ "(.*)";', line) for line in lines]
    return [match[1] for match in values if match and match[1]]


@control("BASE-01", "The host has its name, and resolves it", severity="low", satisfies=["ISO 27001 A.8.9"])
def test_hostname(host: Any, settings: BaseSettings) -> None:
    """Logs, certificates and alerts name the host; sudo hangs where the name does not resolve."""
    if settings.hostname is None:
        raise NotApplicable("no host name is set")
    assert host.check_output("uname -n") == settings.hostname, f"the host calls itself {host.check_output('uname -n')}"
    assert host.file("/etc/hostname").content_string.strip() == settings.hostname, "another name in /etc/hostname"
    assert host.run("getent hosts %s", settings.hostname).rc == 0, f"{settings.hostname} does not resolve"


@control("BASE-02", "Time zone is as set", severity="low", satisfies=["ISO 27001 A.8.17"])
def test_timezone(host: Any, settings: BaseSettings) -> None:
    """Log lines of several hosts can only be put in order if their zones are known."""
    zone = f"/usr/share/zoneinfo/{settings.timezone}"
    assert host.file("/etc/localtime").linked_to == host.check_output("readlink -f %s", zone), "another time zone"


@control(
    "BASE-03",
    "chrony runs with the wanted time sources, and nothing else sets the clock",
    severity="medium",
    satisfies=["CIS Debian 12 2.3", "ISO 27001 A.8.17"],
)
def test_chrony(host: Any, settings: BaseSettings) -> None:
    """Certificates, tokens and logs depend on the clock; two daemons would pull at it."""
    assert host.run("systemctl --quiet is-active chrony").rc == 0, "chrony is not running"
    assert host.run("systemctl --quiet is-enabled chrony").rc == 0, "chrony does not start at boot"
    assert host.run("systemctl --quiet is-active systemd-timesyncd").rc != 0, "systemd-timesyncd runs too"
    text = host.check_output("chronyd -p -f /etc/chrony/chrony.conf")
    found = set(re.findall(r"^(server|pool)\s+(\S+)", text, re.MULTILINE))
    wanted = {("server", name) for name in settings.ntp_servers} | {("pool", name) for name in settings.ntp_pools}
    assert found == wanted, f"time sources are {sorted(found)}, expected {sorted(wanted)}"


@control("BASE-04", "The clock is synchronised", severity="medium", satisfies=["ISO 27001 A.8.17"])
def test_clock(host: Any, settings: BaseSettings) -> None:
    """A daemon that reaches no source keeps no time."""
    if settings.clock == "never" or is_container(host):
        raise NotApplicable("the clock is set by another host")
    tracking = host.check_output("chronyc -c tracking").split(",")
    assert tracking[-1] != "Not synchronised", "chrony reaches none of its sources; see chronyc sources"


@control(
    "BASE-05",
    "Packages come from the wanted sources, all of them signed",
    severity="high",
    satisfies=["CIS Debian 12 1.2", "ISO 27001 A.8.19"],
)
def test_sources(host: Any, settings: BaseSettings) -> None:
    """Whoever supplies packages is root on this host."""
    distribution = host.check_output(". /etc/os-release; echo $ID")
    file = host.file(f"/etc/apt/sources.list.d/{distribution}.sources")
    assert file.exists, f"{file.path} is missing"
    uris = re.findall(r"^URIs: (\S+)", file.content_string, re.MULTILINE)
    if settings.bundle.path:
        own = "file:/var/lib/gpurack/bundle/apt"
        assert uris == [own], f"{file.path} names {', '.join(uris)}, not the bundle"
        asked = re.findall(r"^'([^']+)'", host.check_output("apt-get update --print-uris"), re.MULTILINE)
        others = sorted(uri for uri in asked if not uri.startswith(f"{own}/"))
        assert not others, f"apt asks {', '.join(others)} too, which nobody without a network reaches"
    for mirror in (settings.mirror, settings.security_mirror) if not settings.bundle.path else ():
        assert mirror is None or mirror in uris, f"{mirror} is not among {', '.join(uris)}"
    assert file.content_string.count("Signed-By:") == len(uris), f"a source in {file.path} names no key"
    old = host.file("/etc/apt/sources.list")
    assert not old.exists or not re.search(r"^\s*deb", old.content_string, re.MULTILINE), f"{old.path} has sources"
    trusted = host.run(r"grep -rlE 'trusted=yes|^Trusted: *yes' /etc/apt/sources.list /etc/apt/sources.list.d")
    assert trusted.rc != 0, f"signatures are not checked for {trusted.stdout.strip()}"


@control("BASE-06", "Needed packages are installed", severity="medium", satisfies=["ISO 27001 A.8.9"])
def test_packages(host: Any, settings: BaseSettings) -> None:
    """What is half installed counts as missing."""
    missing = [package for package in settings.all_packages if not host.package(package).is_installed]
    assert not missing, f"not installed: {', '.join(missing)}"
    audit = host.check_output("dpkg --audit")
    assert not audit, f"an installation was cut off: {audit.splitlines()[0]}"


@control(
    "BASE-07",
    "Security updates are installed every day",
    severity="high",
    satisfies=["CIS Debian 12 1.2", "ISO 27001 A.8.8"],
)
def test_unattended_upgrades(host: Any, settings: BaseSettings) -> None:
    """Asked of apt itself: a later file may say otherwise than ours."""
    if not settings.unattended_upgrades:
        raise NotApplicable("unattended upgrades are turned off in the settings")
    for name in ("APT::Periodic::Update-Package-Lists", "APT::Periodic::Unattended-Upgrade"):
        assert apt_config(host, name) == ["1"], f"{name} is {apt_config(host, name)}, expected 1"
    for timer in ("apt-daily.timer", "apt-daily-upgrade.timer"):
        assert host.run("systemctl --quiet is-enabled %s", timer).rc == 0, f"{timer} is not enabled"
        assert host.run("systemctl --quiet is-active %s", timer).rc == 0, f"{timer} is not running"
    origins = apt_config(host, "Unattended-Upgrade::Origins-Pattern")
    assert origins, "no origin is upgraded from"
    others = [origin for origin in origins if "security" not in origin.lower()]
    others += apt_config(host, "Unattended-Upgrade::Allowed-Origins")
    assert not others, f"not security updates only: {', '.join(others)}"


@control(
    "BASE-08",
    "GPU driver, kernel and container engine are never upgraded unattended",
    severity="critical",
    satisfies=["ISO 27001 A.8.32"],
)
def test_never_unattended(host: Any, settings: BaseSettings) -> None:
    """An upgraded driver library beside the old loaded module is the field's commonest outage."""
    if not settings.unattended_upgrades:
        raise NotApplicable("unattended upgrades are turned off in the settings")
    expressions = apt_config(host, "Unattended-Upgrade::Package-Blacklist")
    open_to = [name for name in TAKES_SERVICE_DOWN if not any(re.match(item, name) for item in expressions)]
    assert not open_to, f"would be upgraded unattended: {', '.join(open_to)}"
    gone = set(settings.unattended_exclude) - set(expressions)
    assert not gone, f"not excluded: {', '.join(sorted(gone))}"
    assert apt_config(host, "Unattended-Upgrade::Automatic-Reboot") in (["false"], []), "reboots by itself"


@control(
    "BASE-09",
    "The journal outlives a reboot and stays within its bounds",
    severity="medium",
    satisfies=["CIS Debian 12 6.1", "ISO 27001 A.8.15"],
)
def test_journal(host: Any, settings: BaseSettings) -> None:
    """A log lost at reboot explains no crash; one without bounds fills the disk."""
    text = host.check_output("systemd-analyze cat-config systemd/journald.conf")
    found = dict(re.findall(r"^\s*([A-Za-z]+)=(.*?)\s*$", text, re.MULTILINE))  # the last one counts
    wanted = {
        "Storage": "persistent",
        "SystemMaxUse": f"{settings.journal_max_size_mib}M",
        "MaxRetentionSec": f"{settings.journal_retention_days}day",
    }
    for key, value in wanted.items():
        assert found.get(key) == value, f"{key} is {found.get(key)}, expected {value}"
    assert host.run("systemctl --quiet is-active systemd-journald").rc == 0, "journald is not running"
    assert host.file("/var/log/journal").is_directory, "/var/log/journal is missing: nothing is kept over a reboot"


@control(
    "BASE-10",
    "Kernel parameters are in force, and stay so after a reboot",
    severity="medium",
    satisfies=["CIS Debian 12 3.3", "ISO 27001 A.8.9"],
)
def test_sysctl(host: Any, settings: BaseSettings) -> None:
    """The running kernel is asked; the file is what the next boot reads."""
    wanted = settings.sysctl_for(container=is_container(host))
    file = host.file("/etc/sysctl.d/zz-gpurack-sysctl.conf")
    kept = dict(re.findall(r"^(\S+) = (.*)$", file.content_string if file.exists else "", re.MULTILINE))
    for key, value in wanted.items():
        found = host.check_output("sysctl -n %s", key).split()
        assert found == str(value).split(), f"{key} is {' '.join(found)}, expected {value}"
        assert kept.get(key) == str(value), f"{key} is {kept.get(key)} in {file.path}, expected {value}"


@control("BASE-11", "The package manager waits for its lock", severity="low", satisfies=["ISO 27001 A.8.9"])
def test_apt_lock(host: Any, settings: BaseSettings) -> None:
    """A run that meets the daily update would fail otherwise."""
    seconds = f"{settings.apt_lock_timeout.total_seconds():.0f}"
    assert apt_config(host, "DPkg::Lock::Timeout") == [seconds], f"expected {seconds} seconds"
