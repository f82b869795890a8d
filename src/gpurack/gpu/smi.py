"""What ``nvidia-smi -q -x`` and ``nvidia-smi -L`` print, for hosts without pynvml.

Element names are those of the DTD that nvidia-smi 535 and 550 carry; older and newer ones are read where they differ.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from gpurack.gpu.models import Gpu, GpuProcess, MigInstance, NvmlReport, pci_address

LONGEST = 16 * 1024 * 1024
"""Characters that are read; eight GPUs with all their supported clocks make less than one million."""

END = "</nvidia_smi_log>"
NUMBER = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,6})?) ?(MiB|C|W|%)?")
GPU_LINE = re.compile(r"GPU ([0-9]{1,4}): .*\(UUID: (GPU-[^)]*)\)")
MIG_LINE = re.compile(r"\s+MIG (\S+)\s+Device\s+([0-9]{1,4}): \(UUID: (MIG-[^)]*)\)")
THROTTLE_REASONS = (
    "sw_power_cap",
    "hw_slowdown",
    "sw_thermal_slowdown",
    "hw_thermal_slowdown",
    "hw_power_brake_slowdown",
)


def parse(text: str) -> NvmlReport:
    """Return the report of nvidia-smi; whatever the text is, nothing is raised: ``error`` says what is wrong.

    Args:
        text: output of ``nvidia-smi -q -x``, then of ``nvidia-smi -L``; or what it said instead.
    """
    xml, end, listing = text[:LONGEST].partition(END)
    if not end:
        return NvmlReport(source="nvidia-smi", error=_complaint(text))
    try:
        root = _tree(xml + end)
    except (expat.ExpatError, ValueError) as error:
        return NvmlReport(source="nvidia-smi", error=f"unreadable answer of nvidia-smi: {error}")
    migs = dict(_migs(listing))
    return NvmlReport(
        source="nvidia-smi",
        error=_text(root, "error_string"),
        driver_version=_text(root, "driver_version"),
        cuda_version=_text(root, "cuda_version"),
        gpus=tuple(_gpu(index, element, migs) for index, element in enumerate(root.findall("gpu"))),
    )


def _complaint(text: str) -> str:
    """Return what nvidia-smi said instead of an answer, as NVML words it."""
    lines = [line.strip() for line in text[:LONGEST].splitlines() if line.strip()]
    return lines[0].removeprefix("Failed to initialize NVML: ") if lines else "nvidia-smi printed nothing"


def _tree(xml: str) -> Element:
    """Return the document's root element.

    The text comes from a host, which may be broken into; a few lines of entity declarations would keep this machine
    busy for hours. nvidia-smi declares none, so a text with any is refused: that is all defusedxml would add.
    """
    builder = TreeBuilder()
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    parser.EntityDeclHandler = _refuse_entities
    parser.Parse(xml[xml.index("<") :], True)
    return builder.close()


def _refuse_entities(*_: object) -> None:
    raise ValueError("it declares entities, which nvidia-smi never does")


def _text(element: Element, path: str) -> str:
    """Return the text at a path; empty where it is missing or N/A."""
    found = element.find(path)
    text = ((found.text if found is not None else None) or "").strip()
    return "" if text in {"N/A", "[N/A]"} else text


def _first(element: Element, *paths: str) -> float | None:
    """Return the first of the numbers at several paths; they come with a unit."""
    numbers = (NUMBER.fullmatch(_text(element, path)) for path in paths)
    return next((float(number[1]) for number in numbers if number), None)


def _number(element: Element, *paths: str) -> int | None:
    value = _first(element, *paths)
    return None if value is None else round(value)


def _bytes(element: Element, path: str) -> int | None:
    mib = _number(element, path)
    return None if mib is None else mib * 1024 * 1024


def _flag(element: Element, *paths: str) -> bool | None:
    values = {"Enabled": True, "Yes": True, "Disabled": False, "No": False}
    return next((values[text] for path in paths if (text := _text(element, path)) in values), None)


def _gpu(index: int, element: Element, migs: dict[tuple[str, int], tuple[str, str]]) -> Gpu:
    uuid = _text(element, "uuid")
    lost = next((text for path in ("uuid", "product_name") if "lost" in (text := _text(element, path))), "")
    return Gpu(
        index=index,
        uuid="" if lost else uuid,
        name="" if lost else _text(element, "product_name"),
        address=pci_address(element.get("id") or _text(element, "pci/pci_bus_id")),
        memory_total_bytes=_bytes(element, "fb_memory_usage/total"),
        memory_used_bytes=_bytes(element, "fb_memory_usage/used"),
        utilization_percent=_number(element, "utilization/gpu_util"),
        temperature_celsius=_number(element, "temperature/gpu_temp"),
        temperature_slowdown_celsius=_number(element, "temperature/gpu_temp_slow_threshold"),
        power_watts=_first(
            element,
            "gpu_power_readings/instant_power_draw",
            "gpu_power_readings/power_draw",
            "power_readings/power_draw",
        ),
        power_limit_watts=_first(
            element, "gpu_power_readings/current_power_limit", "power_readings/enforced_power_limit"
        ),
        throttle_reasons=tuple(name for name in THROTTLE_REASONS if _throttled(element, name)),
        ecc_enabled=_flag(element, "ecc_mode/current_ecc"),
        ecc_uncorrected=_uncorrected(element),
        pending_row_remap=_flag(element, "remapped_rows/remapped_row_pending", "retired_pages/pending_retirement"),
        persistence=_flag(element, "persistence_mode"),
        mig_enabled=_flag(element, "mig_mode/current_mig"),
        mig=tuple(
            _mig(uuid, number, mig, migs) for number, mig in enumerate(element.findall("mig_devices/mig_device"))
        ),
        processes=tuple(_processes(element)),
        error=lost,
    )


def _throttled(element: Element, reason: str) -> bool:
    return "Active" in {
        _text(element, f"clocks_{word}_reasons/clocks_{word}_reason_{reason}") for word in ("event", "throttle")
    }


def _uncorrected(element: Element) -> int | None:
    """Return the uncorrected errors since the driver was loaded; GPUs up to Volta count double bit errors instead."""
    volatile = element.find("ecc_errors/volatile")
    if volatile is None:
        return None
    counts = [_number(child, ".") for child in volatile if "uncorrectable" in child.tag]
    known = [count for count in (*counts, _number(volatile, "double_bit/total")) if count is not None]
    return sum(known) if known else None


def _migs(listing: str) -> Iterator[tuple[tuple[str, int], tuple[str, str]]]:
    """Yield (the GPU's UUID, number of the MIG device), (profile, UUID): the XML holds neither."""
    uuid = ""
    for line in listing.splitlines():
        if match := GPU_LINE.match(line):
            uuid = match[2]
        elif match := MIG_LINE.match(line):
            yield (uuid, int(match[2])), (match[1], match[3])


def _mig(uuid: str, number: int, element: Element, migs: dict[tuple[str, int], tuple[str, str]]) -> MigInstance:
    index = _number(element, "index")
    profile, mig_uuid = migs.get((uuid, number if index is None else index), ("", ""))
    return MigInstance(profile=profile, uuid=mig_uuid, memory_bytes=_bytes(element, "fb_memory_usage/total"))


def _processes(element: Element) -> Iterator[GpuProcess]:
    """Yield the compute processes; the others draw on a screen."""
    for process in element.findall("processes/process_info"):
        pid = _number(process, "pid")
        if pid is not None and "C" in _text(process, "type"):
            yield GpuProcess(pid=pid, name=_text(process, "process_name"), memory_bytes=_bytes(process, "used_memory"))
