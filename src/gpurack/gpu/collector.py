"""Ask NVML about the GPUs of the machine this runs on, and print one line of JSON: gpurack.gpu.models.NvmlReport.

The fact ``Nvml`` pipes this file to ``python3 -`` on the host, so that nothing of gpurack has to be installed there.
It therefore needs nothing but the standard library and pynvml, and runs with Python 3.9 and every pynvml since 11.525
(Debian 12); of the functions below, each of them has those that are used here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pynvml as nvml

# Reasons that cost speed someone has paid for; an idle card's low clocks or a chosen limit do not. The bits are NVML's.
THROTTLE_REASONS = {
    0x04: "sw_power_cap",
    0x08: "hw_slowdown",
    0x20: "sw_thermal_slowdown",
    0x40: "hw_thermal_slowdown",
    0x80: "hw_power_brake_slowdown",
}
# This card or driver has no answer to that; every other error is a fault of the GPU.
NOT_GIVEN = {
    nvml.NVML_ERROR_NOT_SUPPORTED,
    nvml.NVML_ERROR_INVALID_ARGUMENT,
    nvml.NVML_ERROR_NOT_FOUND,
    nvml.NVML_ERROR_NO_PERMISSION,
    nvml.NVML_ERROR_FUNCTION_NOT_FOUND,
}
# After these every further question is in vain, and may take long.
GONE = {nvml.NVML_ERROR_GPU_IS_LOST, nvml.NVML_ERROR_RESET_REQUIRED}
PROFILE = re.compile(r"MIG (\S+)")


def ask(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return what a function of NVML answers; None where there is no answer to it."""
    try:
        return function(*arguments)
    except nvml.NVMLError as error:
        if error.value in NOT_GIVEN:
            return None
        raise
    except UnicodeDecodeError:  # raised by pynvml; whoever starts a process may name it as they like
        return None


def text(value: Any) -> str:
    """Return a string of NVML as text; older pynvml return bytes."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value or "")


def words(error: Any) -> str:
    """Return an error in NVML's own words; pynvml's differ for some."""
    try:
        return text(nvml.nvmlErrorString(error.value))
    except nvml.NVMLError:  # there is no library to ask
        return str(error)


def item(values: Any, index: int) -> Any:
    """Return one of the values of an answer, if there is one."""
    return None if values is None else values[index]


def member(answer: Any, name: str) -> Any:
    """Return a member of NVML's structure, if there is one."""
    return None if answer is None else getattr(answer, name)


def flag(value: int | None) -> bool | None:
    """Return NVML's number as a truth value, if there is one."""
    return None if value is None else bool(value)


def watts(milliwatts: int | None) -> float | None:
    """Return NVML's milliwatts in watts."""
    return None if milliwatts is None else milliwatts / 1000


def address(gpu: Any) -> str:
    """Return the PCI address with a domain of four digits, as sysfs has it."""
    bus_id = text(member(ask(nvml.nvmlDeviceGetPciInfo, gpu), "busId"))
    return re.sub("^0000(?=[0-9a-f]{4}:)", "", bus_id.lower())


def throttle_reasons(gpu: Any) -> list[str]:
    """Return the names of the active reasons that cost speed."""
    active = ask(nvml.nvmlDeviceGetCurrentClocksThrottleReasons, gpu) or 0
    return [name for bit, name in THROTTLE_REASONS.items() if active & bit]


def pending_remap(gpu: Any) -> bool | None:
    """Tell whether memory waits for a reset to be mapped out: rows since Ampere, pages before."""
    rows = ask(nvml.nvmlDeviceGetRemappedRows, gpu)
    return flag(item(rows, 2) if rows is not None else ask(nvml.nvmlDeviceGetRetiredPagesPendingStatus, gpu))


def mig_enabled(gpu: Any) -> bool | None:
    """Tell whether MIG mode is on; None on a card without it."""
    return flag(item(ask(nvml.nvmlDeviceGetMigMode, gpu), 0))


def mig_instances(gpu: Any) -> list[dict[str, Any]]:
    """Return the card's MIG devices."""
    found = []
    for index in range(ask(nvml.nvmlDeviceGetMaxMigDeviceCount, gpu) or 0):
        mig = ask(nvml.nvmlDeviceGetMigDeviceHandleByIndex, gpu, index)
        if mig is None:
            continue
        name = text(ask(nvml.nvmlDeviceGetName, mig))
        profile = PROFILE.search(name)
        found.append(
            {
                "profile": profile.group(1) if profile else name,
                "uuid": text(ask(nvml.nvmlDeviceGetUUID, mig)),
                "memory_bytes": member(ask(nvml.nvmlDeviceGetMemoryInfo, mig), "total"),
            }
        )
    return found


def nvlinks(gpu: Any) -> int | None:
    """Return the number of active NVLink links, None on a card without any."""
    states = [ask(nvml.nvmlDeviceGetNvLinkState, gpu, link) for link in range(nvml.NVML_NVLINK_MAX_LINKS)]
    known = [state for state in states if state is not None]
    return sum(known) if known else None


def processes(gpu: Any) -> list[dict[str, Any]]:
    """Return the compute processes."""
    return [
        {
            "pid": process.pid,
            "name": text(ask(nvml.nvmlSystemGetProcessName, process.pid)),
            "memory_bytes": process.usedGpuMemory,
        }
        for process in ask(nvml.nvmlDeviceGetComputeRunningProcesses, gpu) or []
    ]


FIGURES: dict[str, Callable[[Any], Any]] = {
    "uuid": lambda gpu: text(ask(nvml.nvmlDeviceGetUUID, gpu)),
    "name": lambda gpu: text(ask(nvml.nvmlDeviceGetName, gpu)),
    "address": address,
    "memory_total_bytes": lambda gpu: member(ask(nvml.nvmlDeviceGetMemoryInfo, gpu), "total"),
    "memory_used_bytes": lambda gpu: member(ask(nvml.nvmlDeviceGetMemoryInfo, gpu), "used"),
    "utilization_percent": lambda gpu: member(ask(nvml.nvmlDeviceGetUtilizationRates, gpu), "gpu"),
    "temperature_celsius": lambda gpu: ask(nvml.nvmlDeviceGetTemperature, gpu, nvml.NVML_TEMPERATURE_GPU),
    "temperature_slowdown_celsius": lambda gpu: ask(
        nvml.nvmlDeviceGetTemperatureThreshold, gpu, nvml.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN
    ),
    "power_watts": lambda gpu: watts(ask(nvml.nvmlDeviceGetPowerUsage, gpu)),
    "power_limit_watts": lambda gpu: watts(ask(nvml.nvmlDeviceGetEnforcedPowerLimit, gpu)),
    "throttle_reasons": throttle_reasons,
    "ecc_enabled": lambda gpu: flag(item(ask(nvml.nvmlDeviceGetEccMode, gpu), 0)),
    "ecc_uncorrected": lambda gpu: ask(
        nvml.nvmlDeviceGetTotalEccErrors, gpu, nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC
    ),
    "pending_row_remap": pending_remap,
    "persistence": lambda gpu: flag(ask(nvml.nvmlDeviceGetPersistenceMode, gpu)),
    "mig_enabled": mig_enabled,
    "mig": lambda gpu: mig_instances(gpu) if mig_enabled(gpu) else [],
    "nvlinks_active": nvlinks,
    "processes": processes,
}


def describe(index: int) -> dict[str, Any]:
    """Return what NVML says of a GPU: up to the figure at which it fell silent, all others where one is faulty."""
    found: dict[str, Any] = {"index": index}
    try:
        gpu = nvml.nvmlDeviceGetHandleByIndex(index)
    except nvml.NVMLError as error:
        return {**found, "error": words(error)}
    for name, figure in FIGURES.items():
        try:
            found[name] = figure(gpu)
        except nvml.NVMLError as error:
            found.setdefault("error", words(error))
            if error.value in GONE:
                break
        except UnicodeDecodeError:
            found.setdefault("error", f"{name}: not text")
    return found


def report() -> dict[str, Any]:
    """Return the whole report."""
    found: dict[str, Any] = {"source": "nvml"}
    try:
        nvml.nvmlInit()
        found["driver_version"] = text(ask(nvml.nvmlSystemGetDriverVersion))
        cuda = ask(nvml.nvmlSystemGetCudaDriverVersion_v2)
        found["cuda_version"] = f"{cuda // 1000}.{cuda % 1000 // 10}" if cuda else ""
        found["gpus"] = [describe(index) for index in range(nvml.nvmlDeviceGetCount())]
    except nvml.NVMLError as error:
        found["error"] = words(error)
    return found


if __name__ == "__main__":
    print(json.dumps(report()))
