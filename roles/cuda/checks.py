"""Controls of the cuda role."""

from __future__ import annotations

import re
from typing import Any

from gpurack.controls import NotApplicable, control
from gpurack.facts.installed_driver import InstalledDriver
from gpurack.gpu.cuda import CudaError, check
from gpurack.gpu.evidence import cards, read
from roles.cuda.settings import CudaSettings


def _toolkit(host: Any, settings: CudaSettings) -> str:
    cards(host)
    if settings.toolkit_version is None:
        raise NotApplicable("the settings ask for no toolkit: containers carry their own")
    return settings.toolkit_version


@control("CUDA-01", "The toolkit of the settings is installed", severity="medium")
def test_toolkit(host: Any, settings: CudaSettings) -> None:
    """Another toolkit compiles for other drivers and other GPUs."""
    wanted = _toolkit(host, settings)
    nvcc = f"/usr/local/cuda-{wanted}/bin/nvcc" if settings.source == "nvidia" else "nvcc"
    answer = host.run("%s --version", nvcc)
    assert answer.rc == 0, f"{nvcc} does not run: {answer.stderr.strip()}"
    match = re.search(r"release (\d+\.\d+)", answer.stdout)
    assert match and match[1] == wanted, f"{nvcc} is of CUDA {match[1] if match else 'unknown'}, not {wanted}"


@control("CUDA-02", "The driver is new enough for the toolkit", severity="high")
def test_driver(host: Any, settings: CudaSettings) -> None:
    """With an older one programs end with "CUDA driver version is insufficient for CUDA runtime version"."""
    wanted = _toolkit(host, settings)
    driver = read(host, InstalledDriver)
    assert driver, "no driver is installed"
    try:
        check(
            wanted,
            driver,
            "the installed one",
            minor_version_compatibility=settings.minor_version_compatibility,
        )
    except CudaError as error:
        raise AssertionError(str(error)) from None
