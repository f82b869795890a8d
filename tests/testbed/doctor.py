"""The doctor on test hosts, and the ways their Ollama is brought into a bad state."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpurack.lab import Machine
from tests.testbed import gpus
from tests.testbed.site import ROOT, Site

COMPOSE = "/etc/gpurack/compose/ollama/compose.yaml"
CONTAINER = "ollama-ollama-1"
UP = f"docker compose --file {COMPOSE} up --detach --wait --force-recreate"


# What changes on a host by itself, and by any login or request: logs, sudo's stamp, the kernel's own file systems.
BY_ITSELF = (
    "/proc",
    "/sys",
    "/dev",
    "/run/log",
    "/var/log",
    "/run/sudo",
    "/var/lib/sudo",
    "/run/systemd",
    # The kernel tells udev of every host here what any of them asks of its devices, a host that boots beside it too.
    "/run/udev",
    "/run/user",
    "/run/motd.dynamic",
    "/var/lib/docker/containers/*/local-logs",
)


@dataclass(frozen=True)
class Report:
    """What one run of ``gpurack doctor --json`` said."""

    returncode: int
    document: dict[str, Any]
    errors: str

    @property
    def host(self) -> dict[str, Any]:
        """The only host of the report."""
        [host] = self.document["hosts"]
        return dict(host)

    @property
    def causes(self) -> list[str]:
        """Ids of the findings that nothing else explains, in order."""
        return [finding["id"] for finding in self.host["findings"] if not finding["explained_by"]]

    @property
    def first(self) -> dict[str, Any]:
        """The finding that is named first."""
        return dict(self.host["findings"][0])


def doctor(site: Site, *arguments: str, roles: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run ``gpurack doctor`` on a site's hosts, from the repository's root."""
    folder = site.inventory(*roles)
    return subprocess.run(
        [str(Path(sys.executable).with_name("gpurack")), "doctor", str(folder), *arguments],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )


def examine(site: Site, *arguments: str) -> Report:
    """Run ``gpurack doctor --json`` and return what it said."""
    result = doctor(site, "--json", *arguments)
    assert result.stdout, result.stderr
    return Report(result.returncode, json.loads(result.stdout), result.stderr)


def with_service(machine: Machine, check: bool = True, wait: bool = True, **fields: Any) -> None:
    """Start Ollama's container anew with further fields of its Compose service."""
    override = json.dumps({"services": {"ollama": fields}})
    machine.ssh(f"printf %s {shlex.quote(override)} > /root/override.yaml")
    flags = "--detach --wait --force-recreate" if wait else "--detach --force-recreate"
    machine.ssh(f"docker compose --file {COMPOSE} --file /root/override.yaml up {flags}", check=check, timeout=120)


def with_environment(machine: Machine, **values: str) -> None:
    """Start Ollama's container anew with further environment: what its double prints and answers."""
    with_service(machine, environment={name: value.replace("$", "$$") for name, value in values.items()})


def as_declared(machine: Machine) -> None:
    """Start Ollama's container anew as the role declares it."""
    machine.ssh(f"rm -f /root/override.yaml; {UP}", timeout=120)


def kernel_says(machine: Machine, *lines: str) -> None:
    """Write lines to the journal under the kernel's name: the kernel itself belongs to the machine the tests run on."""
    for line in lines:
        machine.ssh(f"logger --tag kernel --priority kern.err {shlex.quote(line)}")
    machine.ssh("journalctl --sync")


def forget_kernel_log(machine: Machine) -> None:
    """Empty the journal, so that the kernel has said nothing."""
    machine.ssh("journalctl --rotate --quiet; sleep 1.1; journalctl --vacuum-time=1s --quiet")


def snapshot(machine: Machine) -> dict[str, str]:
    """Return everything about a host that looking must leave as it is."""
    pruned = " -o ".join(f"-path '{path}'" for path in BY_ITSELF)
    return {
        "files": machine.ssh(
            f"find / \\( {pruned} \\) -prune -o -printf '%p %y %s %m %U %G %T@ %C@ %l\\n' 2>/dev/null "
            # Every login makes and removes a file in /run, and Docker one in /tmp for every program it starts in a
            # container, its health checks too; a container's log flows through its pipes.
            "| sed -E 's/^(\\/run[^ ]* [dp]|\\/tmp d) .*/\\1/'",
            timeout=120,
        ).stdout,
        "devices": machine.ssh("ls /dev").stdout,
        "packages": machine.ssh("dpkg-query -W -f '${Package} ${Version} ${Status}\\n'").stdout,
        "processes": machine.ssh(
            "ps -eo pid,ppid,lstart,args --no-headers | "
            "grep -vE '\\[|sshd|sudo|ps -eo|sh -c|systemd --user|sd-pam|grep|udev-worker'"
        ).stdout,
        "units": machine.ssh(
            "systemctl list-units --all --plain --no-legend --type service,socket,timer | "
            "grep -vE '^(user|session|ssh@|sshd@|run-|systemd-tmpfiles)' | awk '{print $1, $2, $3, $4}'"
        ).stdout,
        "containers": machine.ssh(
            "if systemctl is-active --quiet docker; then docker ps --all --no-trunc --format '{{.ID}} {{.State}}'; "
            f"docker inspect --format '{{{{.State.StartedAt}}}} {{{{len .ExecIDs}}}}' {CONTAINER} 2>&1; "
            "docker image ls --no-trunc; fi"
        ).stdout,
        "mounts": machine.ssh("cut -d' ' -f2,3,4 /proc/self/mounts | grep -v /run/user").stdout,
        "modules": machine.ssh("ls /sys/module").stdout,
        "firewall": machine.ssh("nft list ruleset | sed -E 's/packets [0-9]+ bytes [0-9]+//'").stdout,
    }


def differences(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """Return the lines that are not in both of two snapshots."""
    return [
        f"{what}: {line}"
        for what, value in before.items()
        for line in sorted(set(value.splitlines()) ^ set(after[what].splitlines()))
    ]


VERSION = "550.163.01"
SPEC = "/etc/cdi/nvidia.yaml"
SMI = "/usr/local/lib/nvidia-smi-double"
GPU_LOG = 'level=INFO msg="inference compute" id=GPU-4090 library=CUDA compute=8.9 name=CUDA0 total="24.0 GiB"'
CPU_LOG = 'level=INFO msg="inference compute" id=cpu library=cpu compute="" name=cpu total="22.9 GiB"'
LISTS = 'print("GPU 0: NVIDIA GeForce RTX 4090 (UUID: GPU-4090aaaa-0000-4000-8000-000000000000)")'
UNKNOWN_ERROR = 'print("Failed to initialize NVML: Unknown Error"); raise SystemExit(255)'


def load_module(machine: Machine, *modules: str, version: str = VERSION) -> None:
    """Show kernel modules as loaded: a file system over the container's own ``/sys/module``."""
    machine.ssh(
        "umount /sys/module 2>/dev/null; mount -t tmpfs none /sys/module; cd /sys/module; "
        f"mkdir -p {' '.join(['nf_tables', *modules])}; [ ! -d nvidia ] || echo {version} > nvidia/version"
    )


def make_devices(machine: Machine) -> None:
    """Make the device files of one GPU; nothing is behind them."""
    machine.ssh(
        "cd /dev; rm -f nvidia*; mknod -m 666 nvidia0 c 195 0; mknod -m 666 nvidiactl c 195 255; "
        "mknod -m 666 nvidia-uvm c 511 0"
    )


def write_spec(machine: Machine, version: str = VERSION) -> None:
    """Write a CDI specification as nvidia-ctk writes it, with a library of that version and nvidia-smi's double."""
    library = f"/usr/lib/x86_64-linux-gnu/libcuda.so.{version}"
    devices = "".join(f"    - path: /dev/{name}\n" for name in ("nvidia0", "nvidiactl", "nvidia-uvm"))
    text = (
        "---\ncdiVersion: 0.5.0\nkind: nvidia.com/gpu\n"
        f"devices:\n- name: all\n  containerEdits:\n    deviceNodes:\n{devices}"
        f"containerEdits:\n  mounts:\n  - hostPath: {SMI}\n    containerPath: /usr/bin/nvidia-smi\n"
        f"    options: [ro, nosuid, nodev, bind]\n  - hostPath: {library}\n    containerPath: {library}\n"
        "    options: [ro, nosuid, nodev, bind]\n"
    )
    machine.ssh(f"mkdir -p /etc/cdi; printf %s {shlex.quote(text)} > {SPEC}")


def smi_says(machine: Machine, code: str) -> None:
    """Have nvidia-smi's double in the container do something; written in place, as the container's mount wants it."""
    machine.ssh(f"printf '%s\\n' '#!/usr/bin/python3' {shlex.quote(code)} > {SMI}; chmod 755 {SMI}")


def with_gpu(machine: Machine, healthcheck: bool = True, **environment: str) -> None:
    """Start Ollama's container anew with a GPU by CDI, and with further environment; each health check writes."""
    reservation = {"driver": "cdi", "device_ids": ["nvidia.com/gpu=all"], "capabilities": ["gpu"]}
    with_service(
        machine,
        wait=healthcheck,
        environment={"OLLAMA_DOUBLE_LOG": GPU_LOG, **environment},
        **({} if healthcheck else {"healthcheck": {"disable": True}}),
        deploy={"resources": {"reservations": {"devices": [reservation]}}},
    )


def make_gpu_host(machine: Machine) -> None:
    """Make a host that runs Ollama on its CPU look like one with a GPU and everything that belongs to it."""
    gpus.install(machine, "rtx4090")
    load_module(machine, "nvidia", "nvidia_uvm")
    make_devices(machine)
    smi_says(machine, LISTS)
    machine.ssh(f"touch /usr/lib/x86_64-linux-gnu/libcuda.so.{VERSION}")
    write_spec(machine)
    toolkit = "#!/bin/sh\necho NVIDIA Container Toolkit CLI version 1.17.8\n"
    unit = "[Service]\nExecStart=/bin/sleep infinity\n"
    machine.ssh(
        f"printf %s {shlex.quote(toolkit)} > /usr/bin/nvidia-ctk; chmod 755 /usr/bin/nvidia-ctk; "
        f"printf %s {shlex.quote(unit)} > /etc/systemd/system/nvidia-persistenced.service; systemctl daemon-reload; "
        "systemctl start nvidia-persistenced"
    )
    enable_cdi(machine)
    with_gpu(machine)


def enable_cdi(machine: Machine, on: bool = True) -> None:
    """Switch CDI on in Docker, or off."""
    value = "true" if on else "false"
    machine.ssh(
        "jq '.features.cdi = " + value + "' /etc/docker/daemon.json > /root/daemon.json; "
        "cp /root/daemon.json /etc/docker/daemon.json; systemctl restart docker"
    )
