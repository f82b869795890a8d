"""The one script that reads a host, part by part, and the parts' output.

It only reads. That excludes more than writing: asking a stopped Docker anything starts it through its socket, NVML
loads the NVIDIA module and makes device files when run as root, and timedatectl starts a daemon. Each part that could
do so looks first and is left out instead.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from gpurack.doctor.evidence import Expected, is_wildcard
from gpurack.facts.gpu import ANSWER_SECONDS, Nvml, PciDevices

PART_SECONDS = 20
"""Time for each part: a driver or a Docker that hangs is a finding, not the end of the examination."""

TIMED_OUT = frozenset({124, 137})
"""Exit status of timeout(1)."""

LABEL = "com.docker.compose"

HOST = r"""
echo "uid $(id -u)"
echo "time $(date +%s)"
echo "kernel $(uname -r)"
echo "memory $(sed -n 's/^MemTotal: *\([0-9]*\) kB$/\1/p' /proc/meminfo)"
echo "container $(systemd-detect-virt --container 2>/dev/null)"
echo "secureboot $(od -An -t u1 -j 4 -N 1 /sys/firmware/efi/efivars/SecureBoot-* 2>/dev/null)"
"""

KERNELS = r"""
for tree in /lib/modules/*/; do
    [ -d "$tree" ] || continue
    k=$(basename "$tree")
    echo "kernel $k"
    [ -e "/boot/vmlinuz-$k" ] && echo bootable
    [ -e "$tree/build/." ] && echo headers
    find "$tree" -name 'nvidia*.ko*' ! -name '*-drm.ko*' ! -name '*-uvm.ko*' ! -name '*-modeset.ko*' \
        ! -name '*-peermem.ko*' ! -name 'nvidia*fb.ko*' ! -name 'nvidia-wmi*' ! -name '*-vgpu-vfio.ko*' 2>/dev/null |
    head -n 1 | while read -r file; do
        echo "module $file"
        echo "version $(modinfo -F version "$file" 2>/dev/null)"
        echo "signer $(modinfo -F signer "$file" 2>/dev/null)"
    done
done
true
"""

MODULES = r"""
for module in nvidia nvidia_uvm nvidia_modeset nvidia_drm nouveau nova_core; do
    [ -d "/sys/module/$module" ] && echo "loaded $module"
done
[ -r /sys/module/nvidia/version ] && echo "version $(cat /sys/module/nvidia/version)"
[ -r /proc/driver/nvidia/version ] && echo "nvrm $(head -n 1 /proc/driver/nvidia/version)"
true
"""

DKMS = r"""
command -v dkms >/dev/null 2>&1 || exit 0
dkms status 2>/dev/null | grep -i '^nvidia'
for log in /var/lib/dkms/nvidia*/*/build/make.log; do
    grep -saiE 'error|no such file|cannot find' "$log" | tail -n 4 | sed 's/^/error /'
done
true
"""

LIBRARY = r"""
file=$(PATH="$PATH:/sbin:/usr/sbin" ldconfig -p 2>/dev/null | sed -n 's/^[[:space:]]*libnvidia-ml\.so\.1 .*=> //p' |
    head -n 1)
[ -n "$file" ] && readlink -f "$file"
true
"""

PACKAGES = (
    r"dpkg-query -W -f '${db:Status-Status} ${Package} ${Version}\n' '*nvidia*' "
    "2>/dev/null | sed -n 's/^installed //p'"
)

DEVICES = 'for d in /dev/nvidia*; do [ -e "$d" ] && echo "$d"; done; true'

# NVML as root loads the module and makes missing device files through nvidia-modprobe. It is asked only where there
# is nothing for it to do: everything is there already, or there is no module that could be loaded.
NVML_GATE = r"""
gpus=$(ls /proc/driver/nvidia/gpus 2>/dev/null | wc -l)
nodes=$(ls /dev/nvidia[0-9]* 2>/dev/null | wc -l)
if [ -d /sys/module/nvidia ]; then
    if [ ! -e /dev/nvidiactl ] || [ "$nodes" -lt "$gpus" ]; then
        echo 'device files are missing, and asking the driver would make them'
    fi
elif modinfo -n nvidia >/dev/null 2>&1; then
    echo 'the module is not loaded, and asking the driver would load it'
fi
true
"""

UNITS = (
    "systemctl show --property Id,LoadState,ActiveState,SubState,Result "
    "docker.service containerd.service nvidia-persistenced.service nvidia-fabricmanager.service 2>/dev/null; true"
)

FABRIC_MANAGER = (
    "command -v nv-fabricmanager >/dev/null 2>&1 && nv-fabricmanager --version 2>/dev/null | head -n 3; true"
)

# Kernel messages; and those root wrote under the kernel's name, where journald has them from elsewhere (containers).
KERNEL_PATTERN = (
    "NVRM|nvidia|nouveau|Out of memory|oom-kill|Killed process|Key was rejected|oading of .* is rejected|"
    "unsigned module loading is restricted"
)
KERNEL_LOG = (
    "journalctl --boot --quiet --no-pager --output short-unix _TRANSPORT=kernel + SYSLOG_IDENTIFIER=kernel _UID=0 "
    f"2>/dev/null | grep -aE {shlex.quote(KERNEL_PATTERN)} | tail -n 400; true"
)

DOCKER = r"""
if ! systemctl is-active --quiet docker.service; then
    command -v dockerd >/dev/null 2>&1 || { echo absent; exit 0; }
    echo stopped
    journalctl --boot --unit docker.service --quiet --no-pager --output cat --lines 5 2>/dev/null | sed 's/^/said /'
    exit 0
fi
echo "info $(docker info --format '{{json .}}' 2>&1 | tail -n 1)"
"""

TOOLKIT = "nvidia-ctk --version 2>/dev/null; true"

CDI = r"""
for spec in /etc/cdi/*.yaml /etc/cdi/*.json /var/run/cdi/*.yaml /var/run/cdi/*.json; do
    grep -qs 'nvidia\.com/' "$spec" || continue
    echo "spec $spec"
    grep -oE 'lib(cuda|nvidia-ml)\.so\.[0-9]+\.[0-9.]+' "$spec" | head -n 1 | sed 's/^/library /'
    sed -nE 's/^[[:space:]]*-?[[:space:]]*"?name"?:[[:space:]]*"?([^",]+)"?,?$/device \1/p' "$spec" | sort -u |
        head -n 64
    sed -nE 's/^[[:space:]]*-?[[:space:]]*"?hostPath"?:[[:space:]]*"?([^",]+)"?,?$/\1/p' "$spec" | sort -u |
    while read -r path; do [ -e "$path" ] || echo "missing $path"; done | head -n 20
done
true
"""

# Lines of Ollama, of llama.cpp below it and of NVIDIA's container runtime; requests that failed or were given up.
LOG_PATTERN = (
    "inference compute|no compatible GPUs|offloaded [0-9]+/[0-9]+ layers|out of memory|cudaMalloc failed|"
    "requires more system memory|signal: killed|Failed to initialize NVML|CUDA error|no CUDA-capable device|"
    r"Listening on|address already in use|no space left on device|\| +(499|5[0-9][0-9]) +\|.*(POST)"
)


def http(expected: Expected) -> str:
    """Return the part that asks Ollama's API, in bash alone: a host need not have curl."""
    address = expected.publish_address
    if is_wildcard(address):
        address = "::1" if ":" in address else "127.0.0.1"
    port = expected.publish_port
    return f"""
ask() {{
    exec 3<>/dev/tcp/{address}/{port} || return 7
    printf 'GET %s HTTP/1.0\\r\\nHost: localhost\\r\\nConnection: close\\r\\n\\r\\n' "$1" >&3
    tr -d '\\r' <&3 | sed '1,/^$/d' | head -c 200000
}}
for path in version tags ps; do
    echo "answer $path $(ask /api/$path 2>&1 | tr '\\n' ' ')"
done
"""


def containers() -> str:
    """Return the part that describes the service's container; nothing where Docker does not run."""
    fields = "{{json .}}"
    return f"""
systemctl is-active --quiet docker.service || exit 0
ids=$(docker ps --all --quiet --no-trunc --filter label={LABEL}.project=ollama --filter label={LABEL}.service=ollama \
    --filter label={LABEL}.oneoff=False) || exit 1
[ -z "$ids" ] || docker container inspect --format {shlex.quote(fields)} $ids
"""


def container_logs() -> str:
    """Return the part that reads the log of the service's container since its last start."""
    return f"""
systemctl is-active --quiet docker.service || exit 0
id=$(docker ps --all --quiet --filter label={LABEL}.project=ollama --filter label={LABEL}.service=ollama \
    --filter label={LABEL}.oneoff=False | head -n 1)
[ -n "$id" ] || exit 0
since=$(docker container inspect --format '{{{{.State.StartedAt}}}}' "$id")
docker logs --timestamps --since "$since" --tail 20000 "$id" 2>&1 | grep -aE {shlex.quote(LOG_PATTERN)} | tail -n 400
true
"""


def container_gpus() -> str:
    """Return the part that looks for GPUs inside the running container.

    ``nvidia-smi -L`` is run in it: a process that opens the GPUs and ends, and the only way to meet the fault of a
    container whose cgroup lost them. It writes nothing.
    """
    return f"""
systemctl is-active --quiet docker.service || exit 0
id=$(docker ps --quiet --filter status=running --filter label={LABEL}.project=ollama \
    --filter label={LABEL}.service=ollama | head -n 1)
[ -n "$id" ] || exit 0
pid=$(docker container inspect --format '{{{{.State.Pid}}}}' "$id")
echo looked
for d in /proc/"$pid"/root/dev/nvidia*; do [ -e "$d" ] && echo "device /dev/${{d##*/}}"; done
# Starting a program that is not there is written down by Docker.
[ -e "/proc/$pid/root/usr/bin/nvidia-smi" ] || exit 0
said=$(timeout 10 docker exec "$id" nvidia-smi -L 2>&1)
echo "status $?"
printf '%s\\n' "$said" | head -n 20 | sed 's/^/said /'
"""


def disks(expected: Expected) -> str:
    """Return the part that measures the file systems of the system, of the models and of Docker."""
    paths = shlex.join(dict.fromkeys(["/", "/boot", "/var", "/var/log", expected.models_dir, expected.data_root]))
    return f"""
for path in {paths}; do
    at=$path
    while [ ! -e "$at" ] && [ "$at" != / ]; do at=$(dirname "$at"); done
    df -B1 --output=size,avail,itotal,iavail,target -- "$at" 2>/dev/null | tail -n 1 | sed "s|^|$path |"
done
true
"""


def firewall(expected: Expected) -> str:
    """Return the part that lists rules against the API's port; not where reading would load the firewall's modules."""
    ports = "|".join(dict.fromkeys([str(expected.publish_port), "11434"]))
    return f"""
ss -Hltn 'sport = :{expected.publish_port}' 2>/dev/null | awk '{{print "listens " $4}}'
systemctl is-active --quiet docker.service || [ -d /sys/module/nf_tables ] || exit 0
nft list ruleset 2>/dev/null |
    grep -E '(^|[^0-9])({ports})([^0-9]|$).*(drop|reject)|hook (input|forward) .*policy drop' |
    head -n 40 | sed 's/^[[:space:]]*/rule /'
true
"""


@dataclass(frozen=True)
class Part:
    """One part of the script: a command, the interpreter it is for, and how long it may take."""

    name: str
    command: str
    interpreter: str = "/bin/sh"
    seconds: int = PART_SECONDS


def parts(expected: Expected) -> list[Part]:
    """Return what is read of a host; a host that shall compute on its CPU is not asked for GPUs."""
    gpu = expected.accelerator != "cpu"
    wanted = [
        Part("host", HOST),
        Part("disks", disks(expected)),
        Part("units", UNITS),
        Part("kernel-log", KERNEL_LOG, seconds=40),
    ]
    if gpu:
        wanted += [
            Part("pci", _command(PciDevices())),
            Part("modules", MODULES),
            Part("kernels", KERNELS),
            Part("dkms", DKMS),
            Part("library", LIBRARY),
            Part("packages", PACKAGES),
            Part("devices", DEVICES),
            Part("nvml-gate", NVML_GATE),
            Part("nvml", f'[ -z "$({NVML_GATE.strip()})" ] || exit 0\n{_command(Nvml())}', seconds=ANSWER_SECONDS + 15),
            Part("fabric-manager", FABRIC_MANAGER),
            Part("toolkit", TOOLKIT),
            Part("cdi", CDI),
        ]
    if expected.docker or expected.ollama:
        wanted.append(Part("docker", DOCKER))
    if expected.ollama:
        wanted += [Part("containers", containers()), Part("container-log", container_logs())]
        if gpu:
            wanted.append(Part("container-gpus", container_gpus(), seconds=30))
        wanted += [
            Part("api", http(expected), interpreter="/bin/bash", seconds=10),
            Part("firewall", firewall(expected)),
        ]
    return wanted


def _command(fact: object) -> str:
    """Return a fact's command as text."""
    return str(fact.command())  # type: ignore[attr-defined]


def script(wanted: Iterable[Part], mark: str) -> str:
    """Return the script that runs the parts one after the other, each bounded in time.

    Args:
        wanted: the parts.
        mark: a word nobody can guess, so that no line of a log passes for the begin or end of a part.
    """
    lines = ["export LC_ALL=C DOCKER_CLI_HINTS=false", "{"]
    for part in wanted:
        lines += [
            f"echo '{mark} begin {part.name}'",
            f"timeout -k 2 {part.seconds} {part.interpreter} -c {shlex.quote(part.command.strip())} "
            "</dev/null 2>/dev/null",
            f"printf '\\n%s\\n' \"{mark} end {part.name} $?\"",
        ]
    # Logs hold bytes of every kind, and the connection takes text.
    return "\n".join([*lines, f"echo '{mark} complete'", "} | { iconv -c -f UTF-8 -t UTF-8; true; }"])


@dataclass(frozen=True)
class Output:
    """What one part printed, and its exit status."""

    lines: tuple[str, ...] = ()
    status: int = 0

    @property
    def timed_out(self) -> bool:
        """Whether it did not end in time."""
        return self.status in TIMED_OUT


class IncompleteError(Exception):
    """The script did not run to its end: nothing may be concluded from it."""


def split(text: str, mark: str) -> Mapping[str, Output]:
    """Return the parts of the script's output.

    Raises:
        IncompleteError: its last line is missing.
    """
    found: dict[str, Output] = {}
    name: str | None = None
    lines: list[str] = []
    for line in text.split("\n"):
        if line == f"{mark} complete":
            return found
        if line.startswith(f"{mark} begin "):
            name, lines = line.rpartition(" ")[2], []
        elif name is not None and (match := re.fullmatch(rf"{re.escape(mark)} end {re.escape(name)} (\d+)", line)):
            if lines and not lines[-1]:
                lines.pop()  # the newline that keeps the mark on a line of its own
            found[name], name = Output(tuple(lines), int(match[1])), None
        elif name is not None:
            lines.append(line)
    raise IncompleteError("the examination was cut off")
