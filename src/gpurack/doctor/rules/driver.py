"""Tests of the driver: from the card on the PCI bus to a module of the right version in the kernel."""

from __future__ import annotations

from typing import Literal

from gpurack.doctor.diagnosis import NOT_APPLICABLE, Sign, test
from gpurack.doctor.evidence import Evidence
from gpurack.doctor.xids import OFF_THE_BUS

Answer = Sign | Literal["not applicable"] | None

REFUSED = ("Key was rejected", "is rejected", "unsigned module loading is restricted")
"""What the kernel says when it refuses a module: for its signature, or because it is locked down."""
NO_GPU = (
    "container-runtime-missing",
    "cdi-stale",
    "container-lost-gpu",
    "ollama-on-cpu",
    "ollama-down",
    "model-spilled",
)
"""What follows wherever programs cannot use the GPUs: Docker cannot give them, or Ollama computes without them."""


def version_key(text: str) -> tuple[int, ...]:
    """Return a driver version for comparison."""
    return tuple(int(part) for part in text.split(".") if part.isdigit())


def same_version(one: str, other: str) -> bool:
    """Tell whether two are the same; nothing is said about one that is not known."""
    return not one or not other or version_key(one) == version_key(other)


def grep(evidence: Evidence, *words: str, last: int = 4) -> list[str]:
    """Return the last lines of the kernel log that hold one of some words."""
    return [line.text for line in evidence.kernel_log if any(word in line.text for word in words)][-last:]


@test(
    "gpu-lost",
    "A GPU has fallen off the bus",
    severity="critical",
    needs=("gpu",),
    explains=("@driver", "@devices", "@health", *NO_GPU, "gpu-out-of-memory", "answers-fail"),
)
def gpu_lost(evidence: Evidence) -> Sign | None:
    """The card does not answer any more: what ran on it has failed, and no program can use it until it is back."""
    answering = {gpu.address.lower() for gpu in evidence.nvml.gpus if not gpu.error}
    seen = [
        error.message
        for error in evidence.xids
        if error.xid == 79 and not any(address.startswith(error.address.lower()) for address in answering)
    ][-3:]
    seen += [
        f"GPU {gpu.index} {gpu.address}: {gpu.error}"
        for gpu in evidence.nvml.gpus
        if "lost" in gpu.error.lower() or "fallen off" in gpu.error.lower()
    ]
    if "is lost" in evidence.nvml.error.lower() or "fallen off" in evidence.nvml.error.lower():
        seen.append(evidence.nvml.error)
    return Sign(seen, OFF_THE_BUS) if seen else None


@test(
    "card-missing",
    "No NVIDIA card on the PCI bus",
    severity="critical",
    needs=("gpu",),
    explains=("@driver", "@devices", *NO_GPU),
)
def card_missing(evidence: Evidence) -> Answer:
    """The settings say that models run on NVIDIA GPUs, and the host has none that the bus shows."""
    if evidence.pci.cards or evidence.driver_answers:
        return None
    if not evidence.knows("pci"):
        return NOT_APPLICABLE
    return Sign(
        [f"ollama.accelerator is {evidence.expected.accelerator}", "no device of vendor 10de with a display class"],
        "Check the card's seat and power, and that the slot is on in the firmware (Above 4G Decoding for large "
        'cards; PCI passthrough in a virtual machine). On a host without GPU set ollama.accelerator = "cpu".',
    )


@test(
    "card-given-away",
    "A card is bound to another driver",
    severity="critical",
    needs=("gpu",),
    explains=("module-not-loaded", "driver-silent", "card-not-answering", "device-files-missing", *NO_GPU),
)
def card_given_away(evidence: Evidence) -> Sign | None:
    """A card reserved for virtual machines cannot be used by the host."""
    taken = [card for card in evidence.pci.cards if card.driver in {"vfio-pci", "pci-stub", "xen-pciback"}]
    if not taken:
        return None
    return Sign(
        [f"{card.address} {card.name}: bound to {card.driver}" for card in taken],
        "Take the card's id out of `options vfio-pci ids=` in /etc/modprobe.d and of the kernel's command line, "
        "`update-initramfs -u`, reboot.",
    )


@test(
    "driver-not-installed",
    "The NVIDIA driver is not installed",
    severity="critical",
    needs=("gpu",),
    explains=("@driver", "@devices", *NO_GPU),
)
def driver_not_installed(evidence: Evidence) -> Answer:
    """Without the driver a card is a heater."""
    if evidence.driver_present:
        return None
    if not evidence.knows("modules", "kernels", "dkms", "packages"):
        return NOT_APPLICABLE
    cards = [f"{card.address} {card.name}: driver {card.driver or 'none'}" for card in evidence.pci.cards]
    return Sign(
        [*cards, "no NVIDIA module for any kernel, nothing in DKMS, no package of the driver"],
        evidence.deploy("gpu"),
    )


@test(
    "nouveau-loaded",
    "nouveau holds the card",
    severity="critical",
    needs=("gpu",),
    explains=(
        "module-not-loaded",
        "driver-silent",
        "card-not-answering",
        "device-files-missing",
        "uvm-missing",
        *NO_GPU,
    ),
)
def nouveau_loaded(evidence: Evidence) -> Sign | None:
    """While the free driver nouveau (or nova) is bound to the card, NVIDIA's driver cannot take it."""
    modules = {"nouveau", "nova_core"}
    bound = [
        f"{card.address} {card.name}: bound to {card.driver}" for card in evidence.pci.cards if card.driver in modules
    ]
    seen = bound + [f"module {name} is loaded" for name in evidence.modules if name in modules]
    if not seen or (evidence.module_loaded and not bound):
        return None
    return Sign(
        seen,
        f"Run: {evidence.deploy('gpu')}; or by hand: `printf 'blacklist nouveau\\noptions nouveau modeset=0\\n' > "
        "/etc/modprobe.d/blacklist-nouveau.conf && update-initramfs -u`; then reboot.",
    )


@test(
    "headers-missing",
    "Kernel headers are missing",
    severity="critical",
    needs=("gpu",),
    explains=("dkms-not-built", "module-not-loaded", "driver-silent", "device-files-missing", "uvm-missing", *NO_GPU),
)
def headers_missing(evidence: Evidence) -> Answer:
    """DKMS builds the driver's module for each kernel from that kernel's headers; without them there is no module."""
    if not evidence.dkms:
        return NOT_APPLICABLE
    lacking = [
        kernel
        for kernel in evidence.kernels
        if (kernel.running or kernel.bootable) and not kernel.headers and not kernel.module
    ]
    if not lacking or (evidence.module_loaded and all(kernel.running for kernel in lacking)):
        return None
    # A module that is loaded serves until the reboot into a kernel that has none.
    later = all(not kernel.running for kernel in lacking)
    package = "linux-headers-" + lacking[0].release
    return Sign(
        [
            f"kernel {kernel.release}{' (running)' if kernel.running else ''}: no headers, no NVIDIA module"
            for kernel in lacking
        ],
        f"`apt-get install {package}` (and your kernel flavour's metapackage, such as linux-headers-amd64, so that "
        f"they come along); DKMS builds by itself. Or run: {evidence.deploy('gpu')}",
        title="Kernel headers are missing: after the next reboot there is no driver" if later else "",
        severity="high" if later else None,
    )


@test(
    "dkms-not-built",
    "DKMS has not built the module for this kernel",
    severity="critical",
    needs=("gpu",),
    explains=("module-not-loaded", "driver-silent", "device-files-missing", "uvm-missing", *NO_GPU),
)
def dkms_not_built(evidence: Evidence) -> Answer:
    """A kernel without the module built for it starts without a driver."""
    if not evidence.dkms:
        return NOT_APPLICABLE
    kernel = evidence.running_kernel
    done = [entry for entry in evidence.dkms if entry.kernel == kernel and entry.state.startswith("installed")]
    if done or evidence.running.module or "nvidia" in evidence.modules:
        return None
    newest = evidence.dkms[-1]
    built_by_hand = f"dkms install {newest.module}/{newest.version} -k {kernel}"
    return Sign(
        [
            *(
                f"dkms: {item.module}/{item.version} {item.kernel or '(no kernel)'}: {item.state}"
                for item in evidence.dkms
            ),
            *evidence.dkms_errors[-4:],
        ],
        f"`{built_by_hand}` and read /var/lib/dkms/{newest.module}/{newest.version}/build/make.log. A kernel newer "
        "than the driver's branch needs a newer driver: set nvidia_driver's source or branch, then run: "
        f"{evidence.deploy('gpu')}",
    )


@test(
    "secure-boot-blocks-module",
    "Secure Boot keeps the module from being loaded",
    severity="critical",
    needs=("gpu",),
    explains=("module-not-loaded", "driver-silent", "device-files-missing", "uvm-missing", *NO_GPU),
)
def secure_boot(evidence: Evidence) -> Answer:
    """With Secure Boot on, the kernel loads only modules signed with a key that the firmware knows."""
    if evidence.module_loaded:
        return None if evidence.secure_boot else NOT_APPLICABLE
    refused = grep(evidence, *REFUSED)
    unsigned = evidence.secure_boot and evidence.running.module and not evidence.running.signer
    if not (refused or unsigned):
        return None if evidence.secure_boot else NOT_APPLICABLE
    seen = [f"Secure Boot: {'on' if evidence.secure_boot else 'not told by the firmware'}", *refused]
    if unsigned:
        seen.append(f"{evidence.running.module} is not signed")
    return Sign(
        seen,
        "Enrol the key that signs DKMS's modules: `mokutil --import /var/lib/dkms/mok.pub`, choose a password, reboot, "
        "and confirm with it on the console (Enroll MOK). Or turn Secure Boot off in the firmware.",
    )


@test(
    "module-not-loaded",
    "The NVIDIA module is not loaded",
    severity="critical",
    needs=("gpu",),
    explains=("@driver", "@devices", "cdi-stale", *NO_GPU),
)
def module_not_loaded(evidence: Evidence) -> Sign | None:
    """The driver's libraries are there, and no module in the kernel answers them."""
    mismatch = "mismatch" in evidence.nvml.error.lower()
    if evidence.module_loaded or mismatch or (evidence.nvml.source != "none" and not _says_not_loaded(evidence)):
        return None
    module = evidence.running.module
    seen = [f"kernel {evidence.running_kernel}: the module nvidia is not loaded"]
    seen += [f"module for it: {module or 'none'}"]
    seen += [f"NVML: {evidence.nvml.error}"] if evidence.nvml.error else []
    seen += grep(evidence, "NVRM", "nvidia:")
    if module:
        cure = "`modprobe nvidia`, and read what `dmesg | grep -i nvrm` says then."
    else:
        cure = f"Run: {evidence.deploy('gpu')}"
    return Sign(seen, cure + " A card the module does not support is named there: choose another flavour or branch.")


def _says_not_loaded(evidence: Evidence) -> bool:
    text = evidence.nvml.error.lower()
    return "not loaded" in text or "couldn't communicate" in text or "could not communicate" in text


@test(
    "version-mismatch",
    "Module and libraries are of different driver versions",
    severity="critical",
    needs=("gpu",),
    explains=("@driver", "@devices", "persistence-off", "container-lost-gpu", *NO_GPU),
)
def version_mismatch(evidence: Evidence) -> Sign | None:
    """After an upgrade the old module stays in the kernel; new programs refuse it: Driver/library version mismatch."""
    loaded = evidence.module_version
    told = "version mismatch" in evidence.nvml.error.lower()
    if not told and same_version(loaded, evidence.library_version):
        return None
    seen = [f"NVML: {evidence.nvml.error}"] if told else []
    seen += [f"loaded module: {loaded}"] if loaded else []
    seen += [f"libnvidia-ml: {evidence.library_version}"] if evidence.library_version else []
    seen += [f"module on disk: {evidence.running.module_version}"] if evidence.running.module_version else []
    return Sign(
        seen,
        "Reboot. Without a reboot: stop Ollama and nvidia-persistenced, `rmmod nvidia_drm nvidia_modeset nvidia_uvm "
        "nvidia && modprobe nvidia`, start them again. To keep upgrades from doing this, the packages are held "
        "by the nvidia_driver role.",
    )


@test(
    "driver-too-old",
    "The driver is too old",
    severity="critical",
    error="ERR_GPU",
    needs=("gpu",),
    explains=NO_GPU,
)
def driver_too_old(evidence: Evidence) -> Answer:
    """Ollama's CUDA libraries need a newer driver: models fall back to the CPU, or fail with ERR_GPU."""
    version, least = evidence.driver_version, evidence.expected.minimum_driver
    if not version:
        return NOT_APPLICABLE
    if version_key(version) >= version_key(least):
        return None
    return Sign(
        [f"driver {version}, at least {least} is needed"],
        f"Let the nvidia_driver role install a branch of {least} or newer: {evidence.deploy('gpu')}",
    )
