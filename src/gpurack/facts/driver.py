"""Facts about kernels, driver packages, DKMS builds and the driver in the running kernel; one round trip each."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import time

from pyinfra.api import FactBase

from gpurack.gpu.kernels import META, Kernels
from gpurack.gpu.reboot import ModuleState

STOPPED_CONTAINERS = "/var/lib/gpurack/nvidia_driver/stopped-containers"
"""Containers that were stopped for an upgrade of the driver, one id a line, until they run again."""

REBOOTED_FOR = "/var/lib/gpurack/nvidia_driver/rebooted-for"
"""Reasons of a reboot, until the reboot has made them go away."""


class KernelState(FactBase[Kernels]):
    """Returns the :class:`Kernels` of a host."""

    default = Kernels

    def command(self) -> str:
        """Print architecture, running kernel, and installed kernels, headers and packages that follow the newest."""
        return (
            'echo "architecture $(dpkg --print-architecture)"; '
            'echo "container $(systemd-detect-virt --container || true)"; echo "running $(uname -r)"; '
            'for f in /boot/vmlinuz-*; do [ -e "$f" ] && echo "image ${f#/boot/vmlinuz-}"; done; '
            "for d in /lib/modules/*/build; do "
            '[ -e "$d/Makefile" ] && d=${d%/build} && echo "headers ${d##*/}"; done; '
            "dpkg-query -W -f '${db:Status-Abbrev} ${Package}\\n' 'linux-image-*' 2>/dev/null "
            "| sed -n 's/^[hi]i  */meta /p'; true"
        )

    def process(self, output: Iterable[str]) -> Kernels:
        """Parse the lines, each of which begins with what it tells."""
        found: dict[str, list[str]] = {}
        for line in output:
            kind, _, value = line.strip().partition(" ")
            if value:
                found.setdefault(kind, []).append(value)
        return Kernels(
            architecture=(found.get("architecture") or ["amd64"])[0],
            container=(found.get("container") or ["none"])[0] != "none",
            running=(found.get("running") or [""])[0],
            images=tuple(found.get("image", ())),
            headers=tuple(found.get("headers", ())),
            metas=tuple(name for name in found.get("meta", ()) if META.fullmatch(name)),
        )


class Available(FactBase[dict[str, tuple[str, ...]]]):
    """Returns package -> versions in all package sources, newest first."""

    default = dict

    def command(self, packages: Sequence[str]) -> str:
        """Print ``package | version | source`` lines."""
        return f"apt-cache madison {shlex.join(packages)} 2>/dev/null || true"

    def process(self, output: Iterable[str]) -> dict[str, tuple[str, ...]]:
        """Parse the lines; a version that several sources have appears once."""
        found: dict[str, tuple[str, ...]] = {}
        for line in output:
            words = [word.strip() for word in line.split("|")]
            if len(words) == 3 and words[1] not in found.get(words[0], ()):
                found[words[0]] = (*found.get(words[0], ()), words[1])
        return found


class Held(FactBase[set[str]]):
    """Returns the packages the package manager may not move by itself."""

    default = set

    def command(self) -> str:
        """Print their names."""
        return "apt-mark showhold"

    def process(self, output: Iterable[str]) -> set[str]:
        """Return the lines, without architectures."""
        return {line.strip().partition(":")[0] for line in output if line.strip()}


@dataclass(frozen=True)
class DkmsBuild:
    """A line of ``dkms status``; ``kernel`` is empty where a module is only known to DKMS, not built."""

    module: str
    version: str
    kernel: str
    state: str


@dataclass(frozen=True)
class DkmsModules:
    """What DKMS has of NVIDIA's modules.

    Attributes:
        builds: its status.
        sources: module name -> version of the sources in ``/usr/src``.
    """

    builds: tuple[DkmsBuild, ...] = ()
    sources: tuple[tuple[str, str], ...] = ()

    def source_of(self, version: str) -> str | None:
        """Return the name under which DKMS has the driver of a version."""
        return next((name for name, found in self.sources if found == version), None)

    def installed(self, version: str, kernel: str) -> bool:
        """Tell whether the driver of a version is built and installed for a kernel."""
        return any(
            build.version == version and build.kernel == kernel and build.state == "installed" for build in self.builds
        )


# "nvidia-current/550.163.01, 6.12.118+deb13-amd64, x86_64: installed", dkms 2: "nvidia, 535.183.01, ...".
DKMS_LINE = re.compile(
    r"(?P<module>nvidia(?:-current|-srv|-server|-open)*)(?:/|, )(?P<version>\d+(?:\.\d+)+)"
    r"(?:, (?P<kernel>[^,:]+), (?P<arch>\w+))?: (?P<state>\w+)"
)
DKMS_SOURCE = re.compile(r"/usr/src/(?P<module>nvidia(?:-current|-srv|-server|-open)*)-(?P<version>\d+(?:\.\d+)+)/")


class Dkms(FactBase[DkmsModules]):
    """Returns the :class:`DkmsModules`; empty where DKMS is not installed."""

    default = DkmsModules

    def command(self) -> str:
        """Print DKMS's status and the sources there are."""
        return (
            "command -v dkms >/dev/null && dkms status 2>/dev/null; ls -d /usr/src/nvidia-*/dkms.conf 2>/dev/null; true"
        )

    def process(self, output: Iterable[str]) -> DkmsModules:
        """Parse the lines; what DKMS says of differences after a colon does not count."""
        builds, sources = [], []
        for line in output:
            if match := DKMS_LINE.match(line.strip()):
                builds.append(DkmsBuild(match["module"], match["version"], match["kernel"] or "", match["state"]))
            elif match := DKMS_SOURCE.match(line.strip()):
                sources.append((match["module"], match["version"]))
        return DkmsModules(tuple(builds), tuple(sources))


class RunningModule(FactBase[ModuleState]):
    """Returns the :class:`ModuleState` of the running kernel."""

    default = ModuleState

    def command(self) -> str:
        """Print it; Secure Boot is read from the firmware's own variable where mokutil is not there."""
        return (
            'echo "boot_id $(cat /proc/sys/kernel/random/boot_id)"; echo "clock $(date +%H:%M)"; '
            '[ -e /sys/module/nvidia ] && echo "loaded $(cat /sys/module/nvidia/version)"; '
            "[ -e /sys/module/nouveau ] && echo nouveau yes; "
            f'[ -e {REBOOTED_FOR} ] && echo "rebooted_for $(cat {REBOOTED_FOR})"; '
            "if mokutil --sb-state 2>/dev/null | grep -q 'SecureBoot enabled' || "
            "{ ! command -v mokutil >/dev/null && "
            "od -An -t u1 /sys/firmware/efi/efivars/SecureBoot-* 2>/dev/null | grep -q ' 1$'; }; then "
            "echo secure_boot yes; fi; "
            "for key in /var/lib/shim-signed/mok/MOK.der /var/lib/dkms/mok.pub; do if [ -e $key ]; then "
            'echo "mok $key"; '
            'mokutil --test-key $key 2>/dev/null | grep -q "is already enrolled" && echo enrolled yes; '
            "break; fi; done; true"
        )

    def process(self, output: Iterable[str]) -> ModuleState:
        """Parse the lines, each of which begins with what it tells."""
        found = dict(line.strip().partition(" ")[::2] for line in output)
        return ModuleState(
            loaded=found.get("loaded"),
            nouveau="nouveau" in found,
            secure_boot="secure_boot" in found,
            mok=found.get("mok"),
            enrolled="enrolled" in found,
            boot_id=found.get("boot_id", ""),
            clock=time.fromisoformat(found.get("clock", "00:00")),
            rebooted_for=found.get("rebooted_for", ""),
        )


class StaleInitramfs(FactBase[list[str]]):
    """Returns initial RAM disks that are older than a file they have to hold."""

    default = list

    def command(self, path: str) -> str:
        """Print them; none where nothing makes such disks."""
        return (
            f"command -v update-initramfs >/dev/null && "
            f"find /boot -maxdepth 1 -name 'initrd.img-*' ! -newer {shlex.quote(path)} 2>/dev/null; true"
        )

    def process(self, output: Iterable[str]) -> list[str]:
        """Return the lines."""
        return [line.strip() for line in output if line.strip()]


@dataclass(frozen=True)
class GpuContainers:
    """Docker containers and the driver.

    Attributes:
        running: ids of running containers that were given GPUs.
        stopped: ids of those that an upgrade has stopped and not started again yet.
    """

    running: tuple[str, ...] = ()
    stopped: tuple[str, ...] = ()


class ContainersWithGpus(FactBase[GpuContainers]):
    """Returns the :class:`GpuContainers`."""

    default = GpuContainers

    def command(self) -> str:
        """Print ids: given a GPU by request (``--gpus``, CDI), by NVIDIA's runtime, or as a device file."""
        wanted = "{{.Id}} {{.HostConfig.Runtime}} {{json .HostConfig.DeviceRequests}} {{json .HostConfig.Devices}}"
        return (
            "if command -v docker >/dev/null; then ids=$(docker ps --quiet 2>/dev/null); "
            f"[ -z \"$ids\" ] || docker container inspect --format '{wanted}' $ids 2>/dev/null "
            "| sed -En 's#^([0-9a-f]{64}) .*(nvidia|\"gpu\").*#running \\1#p'; fi; "
            f"[ ! -e {STOPPED_CONTAINERS} ] || sed 's/^/stopped /' {STOPPED_CONTAINERS}; true"
        )

    def process(self, output: Iterable[str]) -> GpuContainers:
        """Parse the lines."""
        pairs = [line.split() for line in output if len(line.split()) == 2]
        return GpuContainers(
            tuple(value for kind, value in pairs if kind == "running"),
            tuple(value for kind, value in pairs if kind == "stopped"),
        )
