"""Evidence of hosts, well and ill, for the doctor's tests: each case with the cause that must be named first."""

from __future__ import annotations

from typing import Any

from gpurack.doctor.evidence import (
    Api,
    CdiSpec,
    DkmsEntry,
    Engine,
    Evidence,
    Expected,
    Filesystem,
    Kernel,
    LoadedModel,
    LogLine,
    OllamaContainer,
    StoredModel,
    Unit,
)
from gpurack.gpu.models import Architecture, Card, Gpu, NvmlReport, PciInventory, XidError

GIB = 1024**3
NOW = 1_800_000_000.0
KERNEL = "6.1.0-31-amd64"
CARD = Card(
    address="0000:01:00.0", device_id="2684", name="GeForce RTX 4090", architecture=Architecture.ADA, driver="nvidia"
)
GPU = Gpu(
    index=0,
    uuid="GPU-0",
    name="NVIDIA GeForce RTX 4090",
    address="0000:01:00.0",
    memory_total_bytes=24 * GIB,
    memory_used_bytes=GIB,
    temperature_celsius=50,
    temperature_slowdown_celsius=90,
    power_watts=100,
    power_limit_watts=450,
    ecc_enabled=False,
    ecc_uncorrected=0,
    pending_row_remap=False,
    persistence=True,
)
BINDING = (("11434/tcp", "127.0.0.1", 11434),)
GPU_LOG = 'time=T level=INFO msg="inference compute" id=GPU-0 library=CUDA compute=8.9 name=CUDA0 total="24.0 GiB"'
CPU_LOG = 'time=T level=INFO msg="inference compute" id=cpu library=cpu compute="" name=cpu total="31.0 GiB"'
CONTAINER = OllamaContainer(
    bindings=BINDING,
    gpu_requests=("nvidia.com/gpu=all",),
    device_files=("/dev/nvidia0", "/dev/nvidiactl"),
    nvidia_smi="GPU 0: NVIDIA GeForce RTX 4090 (UUID: GPU-0)",
    started=NOW - 3600,
    log=(LogLine(time=NOW - 3600, text=GPU_LOG),),
)
HEALTHY = Evidence(
    host="gpu1",
    time=NOW,
    memory_bytes=64 * GIB,
    running_kernel=KERNEL,
    kernels=(Kernel(release=KERNEL, running=True, headers=True, module="nvidia.ko", module_version="550.163.01"),),
    dkms=(DkmsEntry(module="nvidia-current", version="550.163.01", kernel=KERNEL, state="installed"),),
    modules=("nvidia", "nvidia_uvm"),
    module_version="550.163.01",
    library_version="550.163.01",
    pci=PciInventory(cards=(CARD,)),
    device_files=("/dev/nvidia0", "/dev/nvidiactl", "/dev/nvidia-uvm"),
    nvml=NvmlReport(source="nvml", driver_version="550.163.01", cuda_version="12.4", gpus=(GPU,)),
    units={name: Unit(name=name) for name in ("docker", "containerd", "nvidia-persistenced")},
    filesystems=(Filesystem(mount="/", size_bytes=500 * GIB, available_bytes=400 * GIB, paths=("/", "/srv/ollama")),),
    engine=Engine(version="26.1.5", runtimes=("runc",), cdi_dirs=("/etc/cdi", "/var/run/cdi")),
    containers=(CONTAINER,),
    toolkit="1.17.8",
    cdi=(CdiSpec(path="/var/run/cdi/nvidia.yaml", driver_version="550.163.01", devices=("all", "0")),),
    api=Api(
        version="0.32.15",
        models=(StoredModel(name="deepseek-r1:7b", size=5 * GIB),),
        loaded=(LoadedModel(name="deepseek-r1:7b", size=6 * GIB, size_vram=6 * GIB),),
    ),
)
CPU_HOST = HEALTHY.model_copy(
    update={
        "expected": Expected(accelerator="cpu"),
        "kernels": (),
        "dkms": (),
        "modules": (),
        "module_version": "",
        "library_version": "",
        "pci": PciInventory(),
        "device_files": (),
        "nvml": NvmlReport(),
        "toolkit": "",
        "cdi": (),
        "engine": Engine(version="26.1.5", runtimes=("runc",)),
        "containers": (
            CONTAINER.model_copy(update={"gpu_requests": (), "device_files": None, "nvidia_smi": None, "log": ()}),
        ),
        "api": HEALTHY.api.model_copy(update={"loaded": ()}),
    }
)


def but(evidence: Evidence = HEALTHY, **changes: Any) -> Evidence:
    """Return evidence with some fields changed."""
    return evidence.model_copy(update=changes)


def gpu(**changes: Any) -> dict[str, Any]:
    """Return the change to evidence that gives it one GPU with these fields."""
    return {"nvml": HEALTHY.nvml.model_copy(update={"gpus": (GPU.model_copy(update=changes),)})}


def container(**changes: Any) -> dict[str, Any]:
    """Return the change to evidence that gives it one container with these fields."""
    return {"containers": (CONTAINER.model_copy(update=changes),)}


def logged(*texts: str) -> dict[str, Any]:
    """Return the change to evidence that gives the container's log these lines after those of its start."""
    return container(log=(*CONTAINER.log, *(LogLine(time=NOW - 60, text=text) for text in texts)))


def xids(*numbers: int) -> dict[str, Any]:
    """Return the change to evidence that brings XID errors of a card that NVML knows."""
    errors = [
        XidError(xid=number, address="0000:01:00", message=f"NVRM: Xid (PCI:0000:01:00): {number}, pid=1", time=NOW - 9)
        for number in numbers
    ]
    return {"xids": tuple(errors)}


NO_DRIVER: dict[str, Any] = {
    "modules": (),
    "module_version": "",
    "device_files": (),
    "nvml": NvmlReport(source="nvml", error="Driver Not Loaded"),
}
UNBUILT: dict[str, Any] = {
    **NO_DRIVER,
    "kernels": (Kernel(release=KERNEL, running=True, headers=True),),
    "dkms": (DkmsEntry(module="nvidia-current", version="550.163.01", state="added"),),
}
BLIND: dict[str, Any] = container(
    log=(LogLine(time=NOW, text=CPU_LOG),),
    nvidia_smi="Failed to initialize NVML: Driver Not Loaded",
    nvidia_smi_status=9,
)
LOST = "Failed to initialize NVML: Unknown Error"
STOPPED = {"engine": None, "containers": (), "api": Api(error="Connection refused")}
SILENT = {"api": Api(error="Connection refused")}
WIDE = Expected(publish_address="0.0.0.0")  # noqa: S104 - a setting
FULL = (Filesystem(mount="/", size_bytes=500 * GIB, available_bytes=0, paths=("/", "/srv/ollama")),)
KILL = LogLine(time=NOW - 60, text="kernel: Out of memory: Killed process 77 (ollama) total-vm:99kB")

CASES: dict[str, tuple[Evidence, str, str | None]] = {
    "disk full": (but(filesystems=FULL, **STOPPED), "disk-full", None),
    "models disk full": (
        but(filesystems=(FULL[0].model_copy(update={"mount": "/srv/ollama"}),), **SILENT),
        "disk-full",
        None,
    ),
    "no inodes": (
        but(filesystems=(HEALTHY.filesystems[0].model_copy(update={"inodes": 9, "inodes_available": 0}),)),
        "disk-full",
        None,
    ),
    "disk almost full": (
        but(filesystems=(FULL[0].model_copy(update={"available_bytes": 9 * GIB}),)),
        "disk-almost-full",
        None,
    ),
    "clock ahead": (but(clock_skew=90.0), "clock-wrong", None),
    "clock behind": (but(clock_skew=-90.0), "clock-wrong", None),
    "part hangs": (but(unanswered=("dkms",)), "unanswered", None),
    "lost by XID 79": (
        but(**xids(79, 45), **BLIND).model_copy(update={"nvml": NvmlReport(source="nvml", error="Unknown Error")}),
        "gpu-lost",
        None,
    ),
    "lost by NVML": (but(**gpu(error="GPU is lost")), "gpu-lost", None),
    "lost and gone from the bus": (
        but(**{**NO_DRIVER, **xids(79), **BLIND}, pci=PciInventory()),
        "gpu-lost",
        None,
    ),
    "no card": (
        but(**{**NO_DRIVER, **BLIND}, pci=PciInventory(), library_version="", dkms=(), kernels=()),
        "card-missing",
        None,
    ),
    "card given away": (
        but(**{**NO_DRIVER, **BLIND}, pci=PciInventory(cards=(CARD.model_copy(update={"driver": "vfio-pci"}),))),
        "card-given-away",
        None,
    ),
    "no driver": (
        but(
            **{**NO_DRIVER, **BLIND, "nvml": NvmlReport()},
            library_version="",
            dkms=(),
            kernels=(Kernel(release=KERNEL, running=True),),
            pci=PciInventory(cards=(CARD.model_copy(update={"driver": "nouveau"}),)),
        ),
        "driver-not-installed",
        None,
    ),
    "nouveau bound": (
        but(**{**NO_DRIVER, **BLIND}, pci=PciInventory(cards=(CARD.model_copy(update={"driver": "nouveau"}),))),
        "nouveau-loaded",
        None,
    ),
    "nouveau loaded": (but(**{**NO_DRIVER, **BLIND, "modules": ("nouveau",)}), "nouveau-loaded", None),
    "headers missing": (
        but(**{**UNBUILT, **BLIND, "kernels": (Kernel(release=KERNEL, running=True),)}),
        "headers-missing",
        None,
    ),
    "headers of the next kernel missing": (
        but(kernels=(*HEALTHY.kernels, Kernel(release="6.1.0-32-amd64"))),
        "headers-missing",
        None,
    ),
    "dkms failed": (but(**{**UNBUILT, **BLIND}, dkms_errors=("nv.c:1: error: no",)), "dkms-not-built", None),
    "dkms built for another kernel": (
        but(
            **{
                **UNBUILT,
                **BLIND,
                "dkms": (DkmsEntry(module="nvidia", version="550", kernel="6.0", state="installed"),),
            }
        ),
        "dkms-not-built",
        None,
    ),
    "key rejected": (
        but(
            **{**NO_DRIVER, **BLIND},
            secure_boot=True,
            kernel_log=(LogLine(time=NOW, text="kernel: Loading of module nvidia: Key was rejected by service"),),
        ),
        "secure-boot-blocks-module",
        None,
    ),
    "unsigned under Secure Boot": (but(**{**NO_DRIVER, **BLIND}, secure_boot=True), "secure-boot-blocks-module", None),
    "module not loaded": (but(**{**NO_DRIVER, **BLIND}), "module-not-loaded", None),
    "module not loaded, NVML not asked": (
        but(**{**NO_DRIVER, **BLIND, "nvml": NvmlReport()}, nvml_skipped="asking would load it"),
        "module-not-loaded",
        None,
    ),
    "mismatch": (
        but(
            **BLIND, nvml=NvmlReport(source="nvml", error="Driver/library version mismatch"), library_version="550.200"
        ),
        "version-mismatch",
        None,
    ),
    "mismatch seen in the versions alone": (but(library_version="550.200.01"), "version-mismatch", None),
    "old driver": (
        but(
            **BLIND,
            module_version="525.147.05",
            library_version="525.147.05",
            cdi=(CdiSpec(path="/etc/cdi/nvidia.yaml", driver_version="525.147.05"),),
            nvml=HEALTHY.nvml.model_copy(update={"driver_version": "525.147.05"}),
        ),
        "driver-too-old",
        "ERR_GPU",
    ),
    "device files": (
        but(**BLIND, device_files=(), nvml=NvmlReport(), nvml_skipped="device files are missing"),
        "device-files-missing",
        None,
    ),
    "driver hangs": (but(**BLIND, nvml=NvmlReport(source="nvml", error="no answer in time")), "driver-silent", None),
    "nobody to ask": (but(nvml=NvmlReport()), "driver-not-asked", None),
    "one card of two": (
        but(pci=PciInventory(cards=(CARD, CARD.model_copy(update={"address": "0000:02:00.0"})))),
        "card-not-answering",
        None,
    ),
    "uvm": (
        but(
            **container(log=(LogLine(time=NOW, text=CPU_LOG),)),
            modules=("nvidia",),
            device_files=HEALTHY.device_files[:2],
        ),
        "uvm-missing",
        None,
    ),
    "fabric manager absent": (
        but(pci=PciInventory(cards=(CARD,), nvswitches=("0000:07:00.0",))),
        "fabric-manager",
        None,
    ),
    "fabric manager failed": (
        but(
            pci=PciInventory(cards=(CARD,), nvswitches=("0000:07:00.0",)),
            fabric_manager_version="550.163.01",
            units={**HEALTHY.units, "nvidia-fabricmanager": Unit(name="nvidia-fabricmanager", active="failed")},
        ),
        "fabric-manager",
        None,
    ),
    "fabric manager of another version": (
        but(
            pci=PciInventory(cards=(CARD,), nvswitches=("0000:07:00.0",)),
            fabric_manager_version="550.90.07",
            units={**HEALTHY.units, "nvidia-fabricmanager": Unit(name="nvidia-fabricmanager")},
        ),
        "fabric-manager",
        None,
    ),
    "persistence": (
        but(**gpu(persistence=False), units={"docker": Unit(name="docker")}),
        "persistence-off",
        None,
    ),
    "XID": (but(**xids(13, 48)), "xid-errors", None),
    "ECC": (but(**gpu(ecc_enabled=True, ecc_uncorrected=2)), "ecc-errors", None),
    "row remap": (but(**gpu(pending_row_remap=True)), "row-remap-pending", None),
    "hot": (but(**gpu(throttle_reasons=("hw_thermal_slowdown",), temperature_celsius=91)), "thermal-slowdown", None),
    "hot by its temperature": (but(**gpu(temperature_celsius=90)), "thermal-slowdown", None),
    "slowed down for an unnamed reason": (but(**gpu(throttle_reasons=("hw_slowdown",))), "thermal-slowdown", None),
    "power brake": (but(**gpu(throttle_reasons=("hw_power_brake_slowdown",))), "power-brake", None),
    "MIG without instances": (
        but(**{**gpu(mig_enabled=True), **container(log=(LogLine(time=NOW, text=CPU_LOG),))}),
        "mig-without-instances",
        None,
    ),
    "docker stopped": (but(**STOPPED, units={"docker": Unit(name="docker", active="failed")}), "docker-down", None),
    "docker absent": (but(CPU_HOST, **STOPPED, units={}), "docker-down", None),
    "docker hangs": (but(**{**STOPPED, "engine": Engine(error="dockerd did not answer")}), "docker-down", None),
    "no runtime": (
        but(
            **{**SILENT, **container(status="created", error='could not select device driver "nvidia"')},
            engine=Engine(version="26", runtimes=("runc",)),
            toolkit="",
            cdi=(),
        ),
        "container-runtime-missing",
        None,
    ),
    "no CDI specification": (but(cdi=()), "cdi-stale", None),
    "CDI of another driver": (
        but(**SILENT, cdi=(HEALTHY.cdi[0].model_copy(update={"driver_version": "535.261.03"}),)),
        "cdi-stale",
        None,
    ),
    "CDI names files that are gone": (
        but(cdi=(HEALTHY.cdi[0].model_copy(update={"missing": ("/usr/lib/libcuda.so.550.163.01",)}),)),
        "cdi-stale",
        None,
    ),
    "killed by the kernel": (
        but(**{**SILENT, **container(status="exited", exit_code=137, oom_killed=True)}, kernel_log=(KILL,)),
        "oom-killed",
        "OOM",
    ),
    "runner killed": (but(**logged("llama runner process has terminated: signal: killed")), "oom-killed", "OOM"),
    "model refused": (
        but(CPU_HOST, **logged("model requires more system memory (9 GiB) than is available (2 GiB)")),
        "oom-killed",
        "OOM",
    ),
    "GPU memory": (
        but(**logged("ggml_backend_cuda: cudaMalloc failed: out of memory", '| 500 | 1s | POST "/api/chat"')),
        "gpu-out-of-memory",
        "OOM",
    ),
    "container gone": (but(containers=(), **SILENT), "ollama-down", None),
    "container stopped": (but(**{**SILENT, **container(status="exited", exit_code=0)}), "ollama-down", None),
    "container killed from outside": (
        but(**{**SILENT, **container(status="exited", exit_code=137)}),
        "ollama-down",
        None,
    ),
    "container paused": (but(**{**SILENT, **container(status="paused")}), "ollama-down", None),
    "crash loop": (but(**{**SILENT, **container(status="restarting", restarts=7)}), "ollama-down", None),
    "port taken": (
        but(**{**SILENT, **container(status="created", error="listen tcp4: bind: address already in use")}),
        "ollama-down",
        None,
    ),
    "container without GPUs": (
        but(**container(gpu_requests=(), device_files=(), log=(LogLine(time=NOW, text=CPU_LOG),), nvidia_smi=None)),
        "gpu-not-requested",
        None,
    ),
    "GPU lost in the container": (
        but(**container(nvidia_smi=LOST, nvidia_smi_status=255, log=(LogLine(time=NOW, text=CPU_LOG),))),
        "container-lost-gpu",
        None,
    ),
    "device files gone in the container": (but(**container(device_files=())), "container-lost-gpu", None),
    "OLLAMA_HOST": (but(**{**SILENT, **container(ollama_host="127.0.0.1:11434")}), "ollama-host-wrong", "TIMEOUT"),
    "OLLAMA_HOST, other port": (
        but(**{**SILENT, **container(ollama_host="0.0.0.0:8080")}),
        "ollama-host-wrong",
        "TIMEOUT",
    ),
    "published too narrow": (
        but(expected=WIDE, api=HEALTHY.api.model_copy(update={"reachable": False, "reach_error": "refused"})),
        "published-elsewhere",
        "TIMEOUT",
    ),
    "published too wide": (but(**container(bindings=(("11434/tcp", "", 11434),))), "published-elsewhere", None),
    "silent": (but(**SILENT), "ollama-silent", "TIMEOUT"),
    "firewall": (
        but(
            expected=WIDE,
            **container(bindings=(("11434/tcp", "", 11434),)),
            api=HEALTHY.api.model_copy(update={"reachable": False, "reach_error": "no answer within 4 seconds"}),
            firewall=("tcp dport 11434 drop",),
        ),
        "port-unreachable",
        "TIMEOUT",
    ),
    "on the CPU": (but(**container(log=(LogLine(time=NOW, text=CPU_LOG),))), "ollama-on-cpu", None),
    "on the CPU, older Ollama": (
        but(**container(log=(LogLine(time=NOW, text="no compatible GPUs were discovered"),))),
        "ollama-on-cpu",
        None,
    ),
    "model on the CPU": (
        but(api=HEALTHY.api.model_copy(update={"loaded": (LoadedModel(name="m", size=9, size_vram=0),)})),
        "ollama-on-cpu",
        None,
    ),
    "model too large": (
        but(api=HEALTHY.api.model_copy(update={"models": (StoredModel(name="m", size=40 * GIB),)})),
        "model-too-large",
        None,
    ),
    "spilled": (
        but(api=HEALTHY.api.model_copy(update={"loaded": (LoadedModel(name="m", size=9, size_vram=5),)})),
        "model-spilled",
        None,
    ),
    "spilled, seen in the log": (
        but(**logged("load_tensors: offloaded 20/33 layers to GPU"), api=HEALTHY.api.model_copy(update={"loaded": ()})),
        "model-spilled",
        None,
    ),
    "failing": (but(**logged('[GIN] T | 500 | 1.2s | 10.0.0.1 | POST "/api/chat"')), "answers-fail", None),
    "given up": (but(**logged('[GIN] T | 499 | 2m0s | 10.0.0.1 | POST "/api/chat"')), "clients-gave-up", "TIMEOUT"),
    "no model": (but(CPU_HOST, api=Api(version="0.32.15", models=())), "no-model", None),
}
