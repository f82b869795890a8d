"""What a CDI specification says, as far as it tells whether it is still true."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

# nvidia-ctk writes its keys in alphabetical order, so that a device's name stands below its edits, indented like them.
DEVICE = re.compile(r"(?:- |  )name: [\"']?(?P<name>[\w:./-]+)[\"']?\s*")
DRIVER = re.compile(r"\blib(?:cuda|nvidia-ml)\.so\.(?P<version>\d+(?:\.\d+)+)\b")


@dataclass(frozen=True)
class CdiSpec:
    """A specification of NVIDIA's GPUs.

    The rest of its text is not compared: nvidia-ctk lists mounts in changing order (nvidia-container-toolkit#1094).

    Attributes:
        driver: version of the libraries that it puts into containers; empty where it names none.
        devices: names such as ``0``, ``GPU-...``, ``MIG-...``, ``0:1`` and ``all``.
    """

    driver: str = ""
    devices: frozenset[str] = frozenset()

    def differences(self, current: CdiSpec) -> list[str]:
        """Return in words what is no longer true of it, given what one made now would say."""
        found = []
        if self.driver != current.driver:
            found.append(f"made for driver {self.driver or 'unknown'}, and {current.driver or 'none'} is installed")
        if gone := sorted(self.devices - current.devices):
            found.append(f"names devices that are gone: {', '.join(gone)}")
        if new := sorted(current.devices - self.devices):
            found.append(f"lacks devices: {', '.join(new)}")
        return found


def parse(lines: Iterable[str]) -> CdiSpec | None:
    """Return what a specification in YAML says; None for a text that names no device, which is none."""
    driver, devices = "", set()
    for line in lines:
        if match := DEVICE.fullmatch(line):
            devices.add(match["name"])
        elif not driver and (found := DRIVER.search(line)):
            driver = found["version"]
    return CdiSpec(driver, frozenset(devices)) if devices else None
