"""What the doctor knows of a host: everything its tests look at, read in one go and typed."""

from __future__ import annotations

import re
from ipaddress import ip_address
from typing import Literal

from pydantic import BaseModel, ConfigDict

from gpurack.gpu.driver_version import MINIMUM
from gpurack.gpu.models import NvmlReport, PciInventory, XidError

DRIVER_PACKAGE = re.compile(
    r"nvidia-(tesla-)?(\d+-)?(driver|kernel|open|dkms)|linux-(modules|objects|signatures)-nvidia"
)
"""Debian's, Ubuntu's and NVIDIA's packages with the kernel's side of a driver, or that depend on it."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Expected(_Part):
    """What the inventory says the host is.

    Attributes:
        inventory: as it was named on the command line; cures repeat it.
        accelerator: what Ollama runs models on; None when the role is not applied.
        docker: the docker role is applied.
        ollama: the ollama role is applied.
        publish_address: host address the API shall listen on.
        publish_port: host port of the API.
        models_dir: where models are kept.
        data_root: where Docker keeps images and containers.
        minimum_driver: least driver version.
    """

    inventory: str = "inventories/prod"
    accelerator: Literal["nvidia", "cpu"] | None = "nvidia"
    docker: bool = True
    ollama: bool = True
    publish_address: str = "127.0.0.1"
    publish_port: int = 11434
    models_dir: str = "/srv/ollama"
    data_root: str = "/var/lib/docker"
    minimum_driver: str = MINIMUM

    @property
    def local_only(self) -> bool:
        """Whether the API shall be reached from the host itself alone."""
        return is_loopback(self.publish_address)

    @property
    def publish(self) -> str:
        """Address and port, IPv6 in brackets."""
        return address_and_port(self.publish_address, self.publish_port)


class Kernel(_Part):
    """A kernel on the host, and what there is for it.

    Attributes:
        release: as ``uname -r`` has it.
        running: it is the running one.
        bootable: it has an image in ``/boot``.
        headers: a module can be built for it.
        module: the NVIDIA module's file for it; empty without one.
        module_version: of that file.
        signer: who signed it; empty when unsigned.
    """

    release: str
    running: bool = False
    bootable: bool = True
    headers: bool = False
    module: str = ""
    module_version: str = ""
    signer: str = ""


class DkmsEntry(_Part):
    """A line of ``dkms status``: kernel is empty while the module is only added."""

    module: str
    version: str
    kernel: str = ""
    state: str = ""


class Unit(_Part):
    """A systemd unit; ``load`` is ``not-found`` where it is not installed."""

    name: str
    load: str = "loaded"
    active: str = "active"
    sub: str = ""
    result: str = ""

    @property
    def installed(self) -> bool:
        """Whether systemd knows the unit."""
        return self.load not in {"not-found", ""}

    @property
    def running(self) -> bool:
        """Whether it is up."""
        return self.active in {"active", "reloading"}


class Filesystem(_Part):
    """A file system that matters: what is kept on it, and its room."""

    mount: str
    size_bytes: int
    available_bytes: int
    inodes: int = 0
    inodes_available: int = 0
    paths: tuple[str, ...] = ()

    @property
    def free_percent(self) -> float:
        """Share of room that is left."""
        return 100 * self.available_bytes / self.size_bytes if self.size_bytes else 100.0


class LogLine(_Part):
    """A line of a log and when it was written, in seconds since 1970."""

    time: float
    text: str


class CdiSpec(_Part):
    """A CDI specification of NVIDIA's on the host.

    Attributes:
        path: the file.
        driver_version: the driver it was made for, as its libraries' names tell.
        devices: names of its devices.
        missing: files it wants to mount that are not there.
    """

    path: str
    driver_version: str = ""
    devices: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()


class Engine(_Part):
    """What dockerd says of itself; ``error`` says why it says nothing."""

    error: str = ""
    version: str = ""
    runtimes: tuple[str, ...] = ()
    cdi_dirs: tuple[str, ...] = ()
    data_root: str = ""


class OllamaContainer(_Part):
    """The container of the service.

    Attributes:
        name: its name.
        status: ``running``, ``exited``, ``restarting``, ``paused``, ``created``, ``dead``.
        exit_code: of the last end.
        oom_killed: Docker saw the kernel's OOM killer end it.
        error: why Docker could not start it.
        health: ``healthy``, ``unhealthy``, ``starting``; empty without a health check.
        started: seconds since 1970; 0 when never.
        restarts: how often Docker restarted it since it was made.
        ollama_host: ``OLLAMA_HOST`` in its environment.
        bindings: published ports, as (container port, host address, host port).
        gpu_requests: GPUs it asks Docker for: CDI names or ``driver nvidia count -1``; empty for none.
        device_files: NVIDIA's device files inside it; None when they could not be looked at.
        nvidia_smi: what ``nvidia-smi -L`` inside it printed; None when it was not run.
        nvidia_smi_status: its exit status; 126 and 127 mean that there is no such program in the container.
        log: lines of its log that matter, since its last start.
    """

    name: str = "ollama-ollama-1"
    status: str = "running"
    exit_code: int = 0
    oom_killed: bool = False
    error: str = ""
    health: str = "healthy"
    started: float = 0
    restarts: int = 0
    ollama_host: str = "0.0.0.0:11434"
    bindings: tuple[tuple[str, str, int], ...] = ()
    gpu_requests: tuple[str, ...] = ()
    device_files: tuple[str, ...] | None = None
    nvidia_smi: str | None = None
    nvidia_smi_status: int = 0
    log: tuple[LogLine, ...] = ()


class StoredModel(_Part):
    """A model on disk, of ``/api/tags``."""

    name: str
    size: int = 0


class LoadedModel(_Part):
    """A model in memory, of ``/api/ps``."""

    name: str
    size: int
    size_vram: int


class Api(_Part):
    """Ollama's API, asked from the host itself at the address of the settings.

    Attributes:
        version: of the server; empty when it did not answer.
        error: why not.
        models: those of ``/api/tags``; None when that was not answered.
        loaded: models of ``/api/ps``.
        reachable: whether it answered the machine the doctor runs on; None where that was not tried.
        reach_error: why it did not.
        reached_at: address and port that were tried.
    """

    version: str = ""
    error: str = ""
    models: tuple[StoredModel, ...] | None = None
    loaded: tuple[LoadedModel, ...] = ()
    reachable: bool | None = None
    reach_error: str = ""
    reached_at: str = ""


class Evidence(_Part):
    """All that is known of a host.

    Attributes:
        host: its name in the inventory.
        expected: what it shall be.
        time: on its clock, in seconds since 1970; 0 when unknown.
        clock_skew: seconds its clock is ahead of this machine's.
        memory_bytes: main memory.
        container: the kernel belongs to another machine.
        secure_boot: None where the firmware does not tell.
        running_kernel: as ``uname -r`` has it.
        kernels: the kernels there are.
        dkms: NVIDIA's lines of ``dkms status``.
        dkms_errors: what NVIDIA's last failed builds said.
        modules: loaded modules that have to do with NVIDIA cards.
        module_version: version of the loaded NVIDIA module; empty when it is not told.
        library_version: version in the name of ``libnvidia-ml``.
        packages: NVIDIA's installed packages and their versions.
        pci: cards on the bus.
        device_files: ``/dev/nvidia*``.
        nvml: what the driver says.
        nvml_skipped: why NVML was not asked: asking would have loaded the module or made device files.
        xids: XID errors of this boot.
        units: systemd units by name, without ``.service``.
        fabric_manager_version: of its program; empty without one.
        filesystems: those that hold something that matters.
        kernel_log: lines of this boot's kernel log that matter.
        engine: Docker; None when its service does not run.
        docker_said: last lines of its service's log, where it does not run.
        containers: of the Ollama service.
        toolkit: version of nvidia-container-toolkit; empty without it.
        cdi: CDI specifications of NVIDIA's.
        api: Ollama's API.
        listeners: sockets on the API's port.
        firewall: rules that drop or reject something and name the API's port, and chains that drop by default.
        unanswered: parts of the examination that did not end in time, or failed.
    """

    host: str = "host"
    expected: Expected = Expected()
    time: float = 0
    clock_skew: float = 0
    memory_bytes: int = 0
    container: bool = False
    secure_boot: bool | None = None
    running_kernel: str = ""
    kernels: tuple[Kernel, ...] = ()
    dkms: tuple[DkmsEntry, ...] = ()
    dkms_errors: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    module_version: str = ""
    library_version: str = ""
    packages: dict[str, str] = {}
    pci: PciInventory = PciInventory()
    device_files: tuple[str, ...] = ()
    nvml: NvmlReport = NvmlReport()
    nvml_skipped: str = ""
    xids: tuple[XidError, ...] = ()
    units: dict[str, Unit] = {}
    fabric_manager_version: str = ""
    filesystems: tuple[Filesystem, ...] = ()
    kernel_log: tuple[LogLine, ...] = ()
    engine: Engine | None = None
    docker_said: tuple[str, ...] = ()
    containers: tuple[OllamaContainer, ...] = ()
    toolkit: str = ""
    cdi: tuple[CdiSpec, ...] = ()
    api: Api = Api()
    listeners: tuple[str, ...] = ()
    firewall: tuple[str, ...] = ()
    unanswered: tuple[str, ...] = ()

    def knows(self, *parts: str) -> bool:
        """Tell whether some parts of the examination were answered: what they did not find is not there."""
        return not set(parts) & set(self.unanswered)

    @property
    def gpu_expected(self) -> bool:
        """Whether the host shall compute on GPUs: its settings say so, or it has a card and they say nothing."""
        accelerator = self.expected.accelerator
        return accelerator == "nvidia" or (accelerator is None and bool(self.pci.cards))

    @property
    def driver_answers(self) -> bool:
        """Whether NVML answered, for at least a part of the GPUs."""
        return bool(self.nvml.driver_version) and not self.nvml.error

    @property
    def module_loaded(self) -> bool:
        """Whether the NVIDIA module is in the kernel: seen there, or proved by a driver that answers."""
        return "nvidia" in self.modules or self.driver_answers

    @property
    def driver_present(self) -> bool:
        """Whether a driver is installed: its module for some kernel, or a package that brings it.

        The library alone is not: python3-pynvml and others bring it too.
        """
        module = self.module_loaded or self.dkms or any(kernel.module for kernel in self.kernels)
        return bool(module or any(DRIVER_PACKAGE.match(name) for name in self.packages))

    @property
    def running(self) -> Kernel:
        """The running kernel."""
        known = next((kernel for kernel in self.kernels if kernel.running), None)
        return known or Kernel(release=self.running_kernel, running=True)

    @property
    def ollama(self) -> OllamaContainer | None:
        """The service's container; None when there is none or Docker was not asked."""
        return self.containers[0] if self.containers else None

    @property
    def driver_version(self) -> str:
        """Version of the driver: in the kernel, else of the libraries, else of a module not loaded."""
        return self.nvml.driver_version or self.module_version or self.library_version or self.running.module_version

    def deploy(self, name: str) -> str:
        """Return the command that applies one of the files in ``deploys/`` to this host."""
        return f"pyinfra {self.expected.inventory} deploys/{name}.py --limit {self.host}"

    def unit(self, name: str) -> Unit:
        """Return a unit; one that is not installed when nothing is known of it."""
        return self.units.get(name, Unit(name=name, load="not-found", active="inactive"))


def is_loopback(address: str) -> bool:
    """Tell whether an address or host name reaches the machine itself alone."""
    try:
        return ip_address(address.strip("[]")).is_loopback
    except ValueError:
        return address == "localhost"


def is_wildcard(address: str) -> bool:
    """Tell whether an address stands for all of a machine's; Docker writes none at all for it."""
    return address.strip("[]") in {"", "0.0.0.0", "::"}  # noqa: S104 - compared, not bound


def address_and_port(address: str, port: int) -> str:
    """Return both as in a URL."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
