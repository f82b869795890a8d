"""Settings, facts and pure functions of the base role."""

from __future__ import annotations

import re
import subprocess
import time
from typing import Any

import pytest
from pydantic import ValidationError

from gpurack.facts.debian import Platform, PlatformInfo
from gpurack.facts.packages import Packages, PackageState
from gpurack.operations.packages import patient
from gpurack.operations.sysctl import plain
from gpurack.rendering import render
from roles.base.checks import TAKES_SERVICE_DOWN
from roles.base.settings import NEVER_UNATTENDED, BaseSettings


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"hostname": "Gpu_1"}, "letters a-z, digits, hyphens"),
        ({"hostname": "-gpu"}, "letters a-z, digits, hyphens"),
        ({"hostname": "a" * 65}, "64 characters at most"),
        ({"timezone": "Europe/Berlinn"}, "unknown time zone; names are like"),
        ({"timezone": "../../etc/passwd"}, "time zone"),
        ({"ntp_servers": ["a b"]}, "should match pattern"),
        ({"mirror": "ftp://x/debian"}, "should match pattern"),
        ({"components": []}, "at least 1 item"),
        ({"apt_lock_timeout": -1}, "greater than or equal to"),
        ({"packages": ["vim; reboot"]}, "should match pattern"),
        ({"unattended_exclude": ["("]}, "is not a regular expression"),
        ({"unattended_exclude": ['a"b']}, "cannot be written into apt's configuration"),
        ({"journal_max_size_mib": 1}, "greater than or equal to 64"),
        ({"journal_retention_days": 0}, "greater than or equal to 1"),
        ({"sysctl": {"net.x": "1\nkernel.y=2"}}, "must be a number, a word"),
        ({"sysctl": {"; reboot": 1}}, "should match pattern"),
        ({"clock": "sometimes"}, "'auto' or 'never'"),
    ],
)
def test_wrong_settings_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        BaseSettings(**values)
    assert message in str(caught.value)


def excluded(name: str) -> bool:
    """As unattended-upgrade does it."""
    return any(re.match(expression, name) for expression in NEVER_UNATTENDED)


@pytest.mark.parametrize("name", TAKES_SERVICE_DOWN)
def test_what_takes_a_service_down_is_never_upgraded_unattended(name: str) -> None:
    assert excluded(name)


@pytest.mark.parametrize(
    "name", ["openssl", "libc6", "openssh-server", "curl", "linux-libc-dev", "dockerfile-lint", "systemd", "cudatext"]
)
def test_everything_else_is(name: str) -> None:
    assert not excluded(name)


def test_container_sets_only_what_is_its_own() -> None:
    settings = BaseSettings(sysctl={"vm.swappiness": 10, "net.core.somaxconn": 4096})
    assert settings.sysctl_for(container=True) == {"net.core.somaxconn": 4096}
    assert settings.sysctl_for(container=False) == settings.sysctl


def test_packages_are_listed_once() -> None:
    settings = BaseSettings(packages=("curl", "jq"), unattended_upgrades=False)
    assert settings.all_packages.count("curl") == 1
    assert "jq" in settings.all_packages
    assert "unattended-upgrades" not in settings.all_packages


def test_platform_fact() -> None:
    fact = Platform()
    assert fact.process(["ID=debian", "VERSION_CODENAME=trixie", "CONTAINER=systemd-nspawn"]) == PlatformInfo(
        "debian", "trixie", True
    )
    ubuntu = fact.process(['ID="ubuntu"', "VERSION_CODENAME=noble", "CONTAINER=none"])
    assert ubuntu == PlatformInfo("ubuntu", "noble", False)


def test_packages_fact() -> None:
    fact = Packages()
    lines = [
        "ii  curl 8.14.1-2",
        "hi  chrony 4.6.1-3",
        "iF  procps 4.0.4-9",
        "un  tzdata ",
        "rc  docker-compose 1.29.2-3",
    ]
    assert fact.process(lines) == PackageState({"curl": "8.14.1-2", "chrony": "4.6.1-3"})
    assert fact.process(["ii  curl 8.14.1-2", "interrupted", "stale"]) == PackageState({"curl": "8.14.1-2"}, True, True)


def run(command: str) -> tuple[int, str, float]:
    started = time.monotonic()
    result = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False, timeout=20)
    return result.returncode, result.stderr, time.monotonic() - started


def test_patient_gives_up_at_once_on_other_errors() -> None:
    code, error, seconds = run(patient("sh -c 'echo E: no such package >&2; exit 7'", 10))
    assert (code, error) == (100, "E: no such package\n")
    assert seconds < 2


def test_patient_waits_for_a_lock_and_then_says_so() -> None:
    code, error, seconds = run(patient("sh -c 'echo E: Could not get lock /x >&2; exit 1'", 2))
    assert code == 100
    assert "Could not get lock" in error
    assert seconds >= 2


def test_patient_goes_on_when_the_lock_is_free(tmp_path: Any) -> None:
    command = f"sh -c 'test -e {tmp_path}/x || {{ touch {tmp_path}/x; echo E: Could not get lock >&2; exit 1; }}'"
    assert run(patient(command, 10))[0] == 0


@pytest.mark.parametrize(("value", "text"), [(1, "1"), ("word", "word"), ([4096, 87380], "4096 87380"), (None, "None")])
def test_plain(value: object, text: str) -> None:
    assert plain(value) == text


@pytest.mark.parametrize(
    ("distribution", "codename", "expected"),
    [
        ("debian", "bookworm", "Components: main contrib non-free non-free-firmware"),
        ("ubuntu", "noble", "Components: main restricted universe multiverse"),
    ],
)
def test_sources_of_each_distribution(distribution: str, codename: str, expected: str) -> None:
    text = render(f"templates/base/{distribution}.sources.j2", settings=BaseSettings(), codename=codename)
    assert text.startswith("# Managed by gpurack, role base.\n")
    assert text.count(expected) == 2
    assert f"Suites: {codename}-security" in text


def test_security_origins_of_each_distribution() -> None:
    for distribution, origin in {"debian": "origin=Debian", "ubuntu": "origin=Ubuntu"}.items():
        text = render(
            "templates/base/52gpurack-unattended-upgrades.j2", settings=BaseSettings(), distribution=distribution
        )
        assert text.count("origin=") == 1
        assert origin in text
