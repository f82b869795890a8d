"""Which driver a CUDA toolkit needs.

Sources: CUDA release notes, table "CUDA Toolkit and Corresponding Driver Versions" (Linux, the first release of each
version), and table "CUDA Toolkit and Minimum Required Driver Version for CUDA Minor Version Compatibility".
"""

from __future__ import annotations

from gpurack.gpu.driver_version import branch_of, key

TOOLKITS = {
    "11.8": "520.61.05",
    "12.0": "525.60.13",
    "12.1": "530.30.02",
    "12.2": "535.54.03",
    "12.3": "545.23.06",
    "12.4": "550.54.14",
    "12.5": "555.42.02",
    "12.6": "560.28.03",
    "12.8": "570.26",
    "12.9": "575.51.03",
    "13.0": "580.65.06",
    "13.1": "590.44.01",
    "13.2": "595.45.04",
    "13.3": "610.43.02",
}
"""Driver that each toolkit came with: with it everything of the toolkit works. There was no 12.7."""

FAMILIES = {"11": "450.80.02", "12": "525.60.13", "13": "580.65.06"}
"""Driver with which programs of any toolkit of a major version start (minor version compatibility).

What is newer than the driver fails then: PTX code that the driver must compile, and features it does not have.
"""

DEBIAN = {"bookworm": "11.8", "trixie": "12.4"}
"""Version of nvidia-cuda-toolkit in each Debian release."""


class CudaError(ValueError):
    """A toolkit cannot be had; the message says why, and what can."""


def required(toolkit: str, *, minor_version_compatibility: bool = False) -> str:
    """Return the least driver for a toolkit.

    Raises:
        CudaError: the toolkit is not in the table.
    """
    if toolkit not in TOOLKITS:
        raise CudaError(f"toolkit {toolkit} is not in the table of drivers; known are {', '.join(TOOLKITS)}")
    return FAMILIES[toolkit.partition(".")[0]] if minor_version_compatibility else TOOLKITS[toolkit]


def check(toolkit: str, driver: str, what: str, *, minor_version_compatibility: bool = False) -> None:
    """Raise a CudaError if a driver is too old for a toolkit.

    Args:
        toolkit: such as ``12.4``.
        driver: version, or branch of one that is not installed yet; a branch is taken for its newest driver.
        what: what the driver is, for the message.
        minor_version_compatibility: what starts is good enough.
    """
    least = required(toolkit, minor_version_compatibility=minor_version_compatibility)
    if suits(toolkit, driver, minor_version_compatibility=minor_version_compatibility):
        return
    fits = [name for name in TOOLKITS if suits(name, driver)]
    message = f"CUDA {toolkit} needs driver {least} or later, and {what} is {driver}"
    message += f": take CUDA {fits[-1]}, or a newer driver (nvidia_driver.branch)" if fits else ": take a newer driver"
    if not minor_version_compatibility and suits(toolkit, driver, minor_version_compatibility=True):
        message += "; programs that bring code for the very GPU also start with minor_version_compatibility = True"
    raise CudaError(message)


def suits(toolkit: str, driver: str, *, minor_version_compatibility: bool = False) -> bool:
    """Tell whether a driver is new enough for a toolkit of the table."""
    least = required(toolkit, minor_version_compatibility=minor_version_compatibility)
    return key(driver) >= key(least) if "." in driver else int(driver) >= int(branch_of(least))


def packages_for(toolkit: str, source: str, distribution: str, codename: str) -> tuple[str, ...]:
    """Return the packages that bring a toolkit.

    Raises:
        CudaError: the source does not have it.
    """
    if source == "nvidia":
        return (f"cuda-toolkit-{toolkit.replace('.', '-')}",)
    has = DEBIAN.get(codename)
    if distribution != "debian" or has is None:
        raise CudaError('the distribution\'s toolkit is known for Debian alone: set source = "nvidia"')
    if toolkit != has:
        raise CudaError(f'Debian {codename} has CUDA {has}, not {toolkit}: take that, or set source = "nvidia"')
    return ("nvidia-cuda-toolkit",)
