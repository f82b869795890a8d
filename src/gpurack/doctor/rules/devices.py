"""Tests of what programs meet: device files, the driver's answers, and what CUDA needs besides."""

from __future__ import annotations

from gpurack.doctor.diagnosis import NOT_APPLICABLE, Sign, test
from gpurack.doctor.evidence import Evidence
from gpurack.doctor.rules.driver import NO_GPU, Answer, grep, same_version


@test(
    "device-files-missing",
    "Device files are missing",
    severity="critical",
    needs=("gpu",),
    explains=("driver-silent", "card-not-answering", "uvm-missing", *NO_GPU),
)
def device_files_missing(evidence: Evidence) -> Answer:
    """Programs and containers reach the GPUs through /dev/nvidia*."""
    if "nvidia" not in evidence.modules:
        return NOT_APPLICABLE  # the module makes them known; without it there is nothing to miss
    wanted = {"/dev/nvidiactl"} | {f"/dev/nvidia{gpu.index}" for gpu in evidence.nvml.gpus}
    if evidence.pci.cards:
        wanted.add("/dev/nvidia0")
    lacking = sorted(wanted - set(evidence.device_files))
    if not lacking and not evidence.nvml_skipped:
        return None
    seen = [f"missing: {', '.join(lacking)}"] if lacking else [evidence.nvml_skipped]
    return Sign(
        [*seen, f"there are: {', '.join(evidence.device_files) or 'none'}"],
        "`systemctl restart nvidia-persistenced` (or `nvidia-modprobe -c 0 -u`) makes them; the nvidia_driver role "
        f"keeps the daemon on: {evidence.deploy('gpu')}",
    )


@test(
    "driver-silent",
    "The driver does not answer",
    severity="critical",
    needs=("gpu",),
    explains=("fabric-manager", *NO_GPU),
)
def driver_silent(evidence: Evidence) -> Sign | None:
    """What NVML cannot read no program can use; a driver that hangs takes what calls it along."""
    if not evidence.nvml.error or evidence.nvml_skipped:
        return None
    return Sign(
        [evidence.nvml.error, *grep(evidence, "NVRM")],
        "`dmesg | grep -i nvrm` tells more; a driver that hangs needs a reboot.",
    )


@test("driver-not-asked", "There is nothing to ask the driver with", severity="medium", needs=("gpu",))
def driver_not_asked(evidence: Evidence) -> Sign | None:
    """Whether the cards are well is not known, and monitoring does not know it either."""
    if evidence.nvml.error or evidence.nvml.driver_version or evidence.nvml_skipped:
        return None
    return Sign(["neither python3-pynvml nor nvidia-smi is installed"], f"Run: {evidence.deploy('gpu')}")


@test(
    "card-not-answering",
    "A card on the bus is unknown to the driver",
    severity="critical",
    needs=("gpu",),
    explains=("ollama-on-cpu", "model-spilled"),
)
def card_not_answering(evidence: Evidence) -> Answer:
    """The host computes on fewer GPUs than it has, and models that need all of them do not fit."""
    if not evidence.driver_answers:
        return NOT_APPLICABLE
    broken = [f"GPU {gpu.index} {gpu.address}: {gpu.error}" for gpu in evidence.nvml.gpus if gpu.error and not gpu.uuid]
    partly = [f"GPU {gpu.index} {gpu.name}: {gpu.error}" for gpu in evidence.nvml.gpus if gpu.error and gpu.uuid]
    known = {gpu.address.lower() for gpu in evidence.nvml.gpus if gpu.address}
    if known:
        broken += [
            f"{card.address} {card.name}: not among the driver's GPUs"
            for card in evidence.pci.cards
            if card.address.lower() not in known
        ]
    if not broken and not partly:
        return None
    if not broken:
        return Sign(
            partly,
            "`nvidia-smi -q` shows which figure is faulty; if it stays so after a reboot, have the card checked.",
            title="The driver cannot read all of a card",
            severity="medium",
        )
    return Sign(
        [*broken, *partly, *grep(evidence, "NVRM")],
        "`dmesg | grep -i nvrm` names the reason: power cables, a card the module's flavour does not support (open "
        "modules need Turing or newer), or a defect. `nvidia-smi drain` may have taken it out.",
    )


@test(
    "uvm-missing",
    "nvidia_uvm is not loaded",
    severity="critical",
    needs=("gpu",),
    explains=NO_GPU,
)
def uvm_missing(evidence: Evidence) -> Answer:
    """CUDA needs it: nvidia-smi works, and every model runs on the CPU all the same."""
    if "nvidia" not in evidence.modules:
        return NOT_APPLICABLE
    seen = [] if "nvidia_uvm" in evidence.modules else ["the module nvidia_uvm is not loaded"]
    if "/dev/nvidia-uvm" not in evidence.device_files:
        seen.append("/dev/nvidia-uvm is missing")
    return Sign(seen, f"`nvidia-modprobe -u -c 0`; at every boot: {evidence.deploy('gpu')}") if seen else None


@test(
    "fabric-manager",
    "The fabric manager does not run",
    severity="critical",
    needs=("gpu",),
    explains=NO_GPU,
)
def fabric_manager(evidence: Evidence) -> Answer:
    """On machines with NVSwitch no CUDA program starts (error 802, system not yet initialized) before it has run."""
    if not evidence.pci.nvswitches:
        return NOT_APPLICABLE
    unit, version, driver = (
        evidence.unit("nvidia-fabricmanager"),
        evidence.fabric_manager_version,
        evidence.driver_version,
    )
    bridges = f"{len(evidence.pci.nvswitches)} NVSwitch bridges"
    if not same_version(version, driver):
        return Sign(
            [bridges, f"fabric manager {version}, driver {driver}"],
            f"It must be of the driver's very version: {evidence.deploy('gpu')}",
            title="Fabric manager and driver are of different versions",
        )
    if not unit.installed:
        return Sign([bridges, "nvidia-fabricmanager.service is not installed"], evidence.deploy("gpu"))
    if not unit.running:
        return Sign(
            [bridges, f"nvidia-fabricmanager.service is {unit.active} ({unit.result or unit.sub})"],
            "`systemctl enable --now nvidia-fabricmanager`; if it ends again: `journalctl -u nvidia-fabricmanager`.",
        )
    return None


@test("persistence-off", "The driver is unloaded whenever nothing uses it", severity="low", needs=("gpu",))
def persistence_off(evidence: Evidence) -> Answer:
    """Each first request waits seconds for the card to be set up, and its settings are lost each time."""
    off = [gpu for gpu in evidence.nvml.gpus if gpu.persistence is False]
    if not evidence.driver_answers:
        return NOT_APPLICABLE
    if not off or evidence.unit("nvidia-persistenced").running:
        return None
    return Sign(
        [f"GPU {gpu.index} {gpu.name}: persistence mode is off" for gpu in off]
        + [f"nvidia-persistenced is {evidence.unit('nvidia-persistenced').active}"],
        f"`systemctl enable --now nvidia-persistenced`, or run: {evidence.deploy('gpu')}",
    )
