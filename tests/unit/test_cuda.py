"""CUDA toolkits: which driver each needs, and which packages bring it."""

from __future__ import annotations

from itertools import pairwise

import pytest
from pydantic import ValidationError

from gpurack.facts.installed_driver import InstalledDriver
from gpurack.gpu.cuda import DEBIAN, FAMILIES, TOOLKITS, CudaError, check, packages_for, required, suits
from gpurack.gpu.driver_version import key
from roles.cuda.settings import CudaSettings


def test_table_is_in_order_and_each_family_starts_below_its_toolkits() -> None:
    assert all(key(TOOLKITS[before]) < key(TOOLKITS[after]) for before, after in pairwise(TOOLKITS))
    for toolkit, driver in TOOLKITS.items():
        assert key(FAMILIES[toolkit.partition(".")[0]]) <= key(driver)
    assert set(DEBIAN.values()) <= set(TOOLKITS)


@pytest.mark.parametrize(
    ("toolkit", "driver", "fits", "starts"),
    [
        ("12.4", "550.163.01", True, True),
        ("12.4", "550.54.14", True, True),
        ("12.4", "550.40.07", False, True),
        ("12.4", "535.261.03", False, True),
        ("12.4", "520.61.05", False, False),
        ("13.0", "575.51.03", False, False),
        ("13.1", "580.95.05", False, True),
        ("12.4", "550", True, True),
        ("12.4", "535", False, True),
        ("13.0", "580", True, True),
    ],
)
def test_drivers(toolkit: str, driver: str, fits: bool, starts: bool) -> None:
    assert suits(toolkit, driver) is fits
    assert suits(toolkit, driver, minor_version_compatibility=True) is starts


def test_refusal_says_what_fits() -> None:
    with pytest.raises(CudaError) as error:
        check("12.4", "535.261.03", "the installed one")
    assert str(error.value) == (
        "CUDA 12.4 needs driver 550.54.14 or later, and the installed one is 535.261.03: take CUDA 12.2, or a newer "
        "driver (nvidia_driver.branch); programs that bring code for the very GPU also start with "
        "minor_version_compatibility = True"
    )
    with pytest.raises(CudaError, match=r"13.0 needs driver 580.65.06.*take CUDA 12.4, or a newer driver") as error:
        check("13.0", "550.163.01", "the installed one")
    assert "minor_version" not in str(error.value)
    with pytest.raises(CudaError, match="take a newer driver"):
        check("11.8", "470.256.02", "x")
    check("12.4", "535.261.03", "x", minor_version_compatibility=True)


def test_packages() -> None:
    assert packages_for("12.4", "debian", "debian", "trixie") == ("nvidia-cuda-toolkit",)
    assert packages_for("12.4", "nvidia", "debian", "bookworm") == ("cuda-toolkit-12-4",)
    with pytest.raises(CudaError, match=r'Debian bookworm has CUDA 11.8, not 12.4.*source = "nvidia"'):
        packages_for("12.4", "debian", "debian", "bookworm")
    with pytest.raises(CudaError, match='source = "nvidia"'):
        packages_for("12.4", "debian", "ubuntu", "noble")


def test_unknown_toolkits_are_refused_by_the_settings() -> None:
    with pytest.raises(ValidationError, match=r"toolkit 12.7 is not in the table of drivers; known are 11.8, 12.0"):
        CudaSettings(toolkit_version="12.7")
    with pytest.raises(CudaError):
        required("9.0")
    assert CudaSettings().toolkit_version is None


@pytest.mark.parametrize(
    ("lines", "version"),
    [
        (["550.163.01-2"], "550.163.01"),
        (["580.95.05-0ubuntu0.24.04.1", "550.54.14"], "580.95.05"),
        (["550.163.01"], "550.163.01"),
        (["", "nonsense"], ""),
        ([], ""),
    ],
)
def test_installed_driver(lines: list[str], version: str) -> None:
    assert InstalledDriver().process(lines) == version
