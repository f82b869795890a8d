"""gpurack doctor on a host that seems to have a GPU: broken at every stage of the chain, each named first.

Real: Docker with CDI, DKMS, systemd, the journal. Doubles: the PCI bus, NVML, /sys/module, nvidia-smi in the container.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from gpurack.lab import Machine
from gpurack.lab.ollama_double import archive
from tests.testbed import gpus
from tests.testbed.doctor import (
    CONTAINER,
    CPU_LOG,
    GPU_LOG,
    LISTS,
    SPEC,
    UNKNOWN_ERROR,
    VERSION,
    as_declared,
    differences,
    enable_cdi,
    examine,
    forget_kernel_log,
    kernel_says,
    load_module,
    make_devices,
    make_gpu_host,
    smi_says,
    snapshot,
    with_gpu,
    write_spec,
)
from tests.testbed.site import Site

pytestmark = pytest.mark.host

SETTINGS = {
    "images": {"archives": {"ollama": str(archive())}},
    "health_interval": "PT1S",
    "health_start_period": "PT0S",
    "ready_timeout": "PT40S",
}


@pytest.fixture(scope="module")
def host(machines: Callable[..., list[Machine]]) -> Machine:
    [machine] = machines(1, release="trixie")
    return machine


@pytest.fixture(scope="module")
def site(host: Machine, site_for: Callable[..., Site]) -> Site:
    """Return a site whose host was set up for its CPU, then given a GPU: the inventory says that it has one."""
    site = site_for(host, {"docker": {}, "ollama": {**SETTINGS, "accelerator": "cpu"}})
    first = site.run("docker", "ollama")
    assert first.ok, first.output
    host.ssh("apt-get -qy --no-install-recommends install jq", timeout=120)
    make_gpu_host(host)
    site.settings["ollama"] = dict(SETTINGS)
    return site


def test_nothing_is_found_on_a_gpu_host(site: Site) -> None:
    report = examine(site)
    assert report.returncode == 0, [(item["id"], item["seen"]) for item in report.host["findings"]]
    tests = report.host["tests"]
    expected = ("driver-too-old", "version-mismatch", "uvm-missing", "cdi-stale", "container-lost-gpu", "ollama-on-cpu")
    assert {tests[name] for name in expected} == {"ok"}


def test_looking_changes_nothing(site: Site, host: Machine) -> None:
    """NVML is asked, and nvidia-smi run in the container; nothing is left of either."""
    with_gpu(host, healthcheck=False)
    examine(site)
    before = snapshot(host)
    report = examine(site)
    after = snapshot(host)
    with_gpu(host)
    assert report.host["tests"]["driver-too-old"] == report.host["tests"]["container-lost-gpu"] == "ok"
    assert differences(before, after) == []


Step = Callable[[Machine], object]
State = tuple[Step, Step, str, str | None]


def shell(command: str) -> Step:
    """Return a step that runs a command as root."""
    return lambda host: host.ssh(command, timeout=300)


def steps(*several: Step) -> Step:
    """Return a step of several."""
    return lambda host: [step(host) for step in several]


def nvml(name: str, **changes: Any) -> Step:
    """Return a step that installs a scenario, with changes to every GPU in it."""

    def step(host: Machine) -> None:
        wanted = gpus.scenario(name)
        if wanted.nvml and "driver_version" in wanted.nvml:
            wanted.nvml["driver_version"] = VERSION
        for gpu in (wanted.nvml or {}).get("gpus", []):
            gpu.update(changes)
        gpus.install(host, wanted)

    return step


def driver(version: str) -> Step:
    """Return a step that makes a driver version the one NVML tells."""

    def step(host: Machine) -> None:
        wanted = gpus.scenario("rtx4090")
        assert wanted.nvml is not None
        wanted.nvml["driver_version"] = version
        gpus.install(host, wanted)

    return step


def bus(*cards: str, bound: str | None = None) -> Step:
    """Return a step that shows other cards on the bus."""
    return lambda host: host.pretend_cards(cards, driver=bound)  # type: ignore[attr-defined]


def modules(*names: str, version: str = VERSION) -> Step:
    """Return a step that shows modules as loaded."""
    return lambda host: load_module(host, *names, version=version)


def container(**environment: str) -> Step:
    """Return a step that starts Ollama with a GPU and some environment."""
    return lambda host: with_gpu(host, **environment)


def says(*lines: str) -> Step:
    """Return a step that writes to the kernel's log."""
    return lambda host: kernel_says(host, *lines)


def smi(code: str) -> Step:
    """Return a step that changes what nvidia-smi in the container does."""
    return lambda host: smi_says(host, code)


def spec(version: str = VERSION) -> Step:
    """Return a step that writes the CDI specification of a driver version."""
    return lambda host: write_spec(host, version)


WELL = steps(nvml("rtx4090"), modules("nvidia", "nvidia_uvm"))
LOADED = modules("nvidia", "nvidia_uvm")
GONE = steps(nvml("not-loaded"), modules())
# What the other programs then say: the failures that hide the cause in practice.
BLIND = steps(smi('print("NVIDIA-SMI has failed"); raise SystemExit(9)'), container(OLLAMA_DOUBLE_LOG=CPU_LOG))
SEES = steps(smi(LISTS), container())
MODULE = "/lib/modules/$(uname -r)/updates/dkms/nvidia-current.ko"
XID = "NVRM: Xid (PCI:0000:41:00): {}, pid='<unknown>', name=<unknown>, details"
MODEL = {"name": "r1:70b", "model": "r1:70b", "size": 44_000_000_000, "digest": "0" * 64}
DKMS = """
d=/usr/src/nvidia-current-550.163.01; mkdir -p $d
printf 'obj-m := nv.o\\nall:\\n\\t@echo "nv.c:7: error: unknown type name vm_fault_t"; exit 1\\n' > $d/Makefile
printf 'PACKAGE_NAME="nvidia-current"\\nPACKAGE_VERSION="550.163.01"\\nMAKE[0]="make"\\nCLEAN="true"\\n' > $d/dkms.conf
printf 'BUILT_MODULE_NAME[0]="nv"\\nDEST_MODULE_LOCATION[0]="/updates/dkms"\\n' >> $d/dkms.conf
DEBIAN_FRONTEND=noninteractive apt-get -qy --no-install-recommends install dkms
dkms add nvidia-current/550.163.01
"""
NO_DKMS = (
    "dkms remove nvidia-current/550.163.01 --all; rm -rf /usr/src/nvidia-current-550.163.01 /lib/modules/$(uname -r)"
)

# state: how it is made, how it is mended, the cause, and the classic error
STATES: dict[str, State] = {
    "no card": (steps(GONE, bus(), BLIND), steps(WELL, SEES), "card-missing", None),
    "card given to virtual machines": (
        steps(GONE, bus("2684", bound="vfio-pci"), shell(f"install -D /dev/null {MODULE}"), BLIND),
        steps(shell("rm -r /lib/modules"), WELL, SEES),
        "card-given-away",
        None,
    ),
    "driver not installed": (
        steps(GONE, bus("2684", bound="nouveau"), modules("nouveau"), BLIND),
        steps(WELL, SEES),
        "driver-not-installed",
        None,
    ),
    "nouveau holds the card": (
        steps(GONE, bus("2684", bound="nouveau"), modules("nouveau"), shell(f"install -D /dev/null {MODULE}"), BLIND),
        steps(shell("rm -r /lib/modules"), WELL, SEES),
        "nouveau-loaded",
        None,
    ),
    "module not loaded": (
        steps(GONE, shell(f"install -D /dev/null {MODULE}"), BLIND),
        steps(shell("rm -r /lib/modules"), WELL, SEES),
        "module-not-loaded",
        None,
    ),
    "Secure Boot refuses the module": (
        steps(
            GONE,
            shell(f"install -D /dev/null {MODULE}"),
            says("Loading of module with unavailable key is rejected"),
            BLIND,
        ),
        steps(shell("rm -r /lib/modules"), forget_kernel_log, WELL, SEES),
        "secure-boot-blocks-module",
        None,
    ),
    "headers missing": (steps(GONE, shell(DKMS), BLIND), WELL, "headers-missing", None),
    "DKMS build fails": (
        steps(
            GONE,
            shell(
                "mkdir -p /lib/modules/$(uname -r)/build; touch /lib/modules/$(uname -r)/build/Makefile; "
                "dkms build nvidia-current/550.163.01 -k $(uname -r) --force || true"
            ),
        ),
        steps(shell(NO_DKMS), WELL, SEES),
        "dkms-not-built",
        None,
    ),
    "module and library differ": (
        steps(
            nvml("mismatch"),
            smi('print("Failed to initialize NVML: Driver/library version mismatch"); raise SystemExit(18)'),
        ),
        steps(WELL, SEES),
        "version-mismatch",
        None,
    ),
    "driver too old": (
        steps(
            driver("525.147.05"),
            modules("nvidia", "nvidia_uvm", version="525.147.05"),
            shell("touch /usr/lib/x86_64-linux-gnu/libcuda.so.525.147.05"),
            spec("525.147.05"),
            container(OLLAMA_DOUBLE_LOG=CPU_LOG),
        ),
        steps(WELL, spec(), SEES),
        "driver-too-old",
        "ERR_GPU",
    ),
    "device files missing": (shell("rm /dev/nvidia0 /dev/nvidiactl"), make_devices, "device-files-missing", None),
    "nvidia_uvm not loaded": (
        steps(modules("nvidia"), shell("rm /dev/nvidia-uvm"), container(OLLAMA_DOUBLE_LOG=CPU_LOG)),
        steps(make_devices, LOADED, SEES),
        "uvm-missing",
        None,
    ),
    "a card fell off the bus": (
        steps(nvml("gpu-lost"), says(XID.format(79))),
        steps(forget_kernel_log, WELL),
        "gpu-lost",
        None,
    ),
    "NVSwitch without fabric manager": (
        steps(nvml("h100x8"), shell("for i in $(seq 1 7); do mknod /dev/nvidia$i c 195 $i; done")),
        steps(make_devices, WELL),
        "fabric-manager",
        None,
    ),
    "XID errors": (steps(says(XID.format(31), XID.format(119))), forget_kernel_log, "xid-errors", None),
    "memory errors": (
        steps(nvml("ecc-errors"), shell("mknod /dev/nvidia1 c 195 1")),
        steps(make_devices, WELL),
        "ecc-errors",
        None,
    ),
    "overheated": (
        nvml("overheated", throttle_reasons=0x60, ecc_uncorrected=0),
        WELL,
        "thermal-slowdown",
        None,
    ),
    "power brake": (
        nvml("overheated", throttle_reasons=0x80, temperature=60, ecc_uncorrected=0),
        WELL,
        "power-brake",
        None,
    ),
    "persistence off": (
        steps(nvml("rtx4090", persistence=0), shell("systemctl stop nvidia-persistenced")),
        steps(WELL, shell("systemctl start nvidia-persistenced")),
        "persistence-off",
        None,
    ),
    "MIG without devices": (
        steps(nvml("a100-mig", mig=[]), container(OLLAMA_DOUBLE_LOG=CPU_LOG)),
        steps(WELL, SEES),
        "mig-without-instances",
        None,
    ),
    "CDI specification of an older driver": (
        steps(spec("535.261.03"), shell(f"docker restart {CONTAINER} || true")),
        steps(spec(), SEES),
        "cdi-stale",
        None,
    ),
    "no CDI specification": (
        shell(f"rm {SPEC}; docker restart {CONTAINER} || true"),
        steps(spec(), SEES),
        "cdi-stale",
        None,
    ),
    "Docker without CDI or runtime": (
        lambda host: (host.ssh(f"docker stop --time 1 {CONTAINER}"), enable_cdi(host, False)),
        steps(enable_cdi, SEES),
        "container-runtime-missing",
        None,
    ),
    "container made without GPUs": (as_declared, SEES, "gpu-not-requested", None),
    "container lost its GPUs": (
        steps(container(OLLAMA_DOUBLE_LOG=GPU_LOG), smi(UNKNOWN_ERROR)),
        smi(LISTS),
        "container-lost-gpu",
        None,
    ),
    "Ollama found no GPU": (container(OLLAMA_DOUBLE_LOG=CPU_LOG), SEES, "ollama-on-cpu", None),
    "model spilled": (
        container(OLLAMA_DOUBLE_PS=json.dumps([{**MODEL, "size_vram": 23_000_000_000}])),
        SEES,
        "model-spilled",
        None,
    ),
    "layers spilled": (
        container(OLLAMA_DOUBLE_LOG=f"{GPU_LOG}\nload_tensors: offloaded 20/33 layers to GPU"),
        SEES,
        "model-spilled",
        None,
    ),
    "GPU memory full": (
        container(
            OLLAMA_DOUBLE_LOG=f"{GPU_LOG}\nggml_backend_cuda_buffer_type_alloc_buffer: allocating 9216.00 MiB on "
            "device 0: cudaMalloc failed: out of memory\n"
            '[GIN] 2026/11/24 - 14:00:00 | 500 | 9.1s | 10.0.0.9 | POST "/api/chat"'
        ),
        SEES,
        "gpu-out-of-memory",
        "OOM",
    ),
}


@pytest.mark.parametrize("name", STATES)
def test_the_cause_is_named_first(site: Site, host: Machine, name: str) -> None:
    make, mend, cause, error = STATES[name]
    make(host)
    try:
        report = examine(site)
    finally:
        mend(host)
    assert report.returncode == 1, report.errors
    assert report.causes == [cause], [(item["id"], item["seen"]) for item in report.host["findings"]]
    assert (report.first["id"], report.first["error"]) == (cause, error)
    assert report.first["seen"] and report.first["cure"]


def test_nothing_is_left_of_the_broken_states(site: Site) -> None:
    report = examine(site)
    assert report.returncode == 0, [(item["id"], item["seen"]) for item in report.host["findings"]]


def test_looking_neither_loads_the_module_nor_makes_device_files(site: Site, host: Machine) -> None:
    """Asking NVML as root does both: it is not asked where it would."""
    gpus.install(host, "not-loaded")  # what NVML would answer if it were asked
    host.ssh("rm /dev/nvidiactl")
    report = examine(site)
    make_devices(host)
    gpus.install(host, "rtx4090")
    assert report.causes == ["device-files-missing"]
    assert "missing: /dev/nvidiactl" in report.first["seen"]
    assert report.host["tests"]["driver-silent"] == "ok", "NVML was asked"
