"""Containers that boot like machines: systemd-nspawn, a second from nothing to SSH.

They share this machine's kernel. Everything else of a host is real: systemd as process 1, its own network with its own
firewall, cron, apt, Docker. What needs its own kernel is for virtual machines (``qemu.py``).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from gpurack.lab import network, pci
from gpurack.lab.machine import LabError, Machine, lab_lock, run, started
from gpurack.lab.rootfs import resolv_conf, root

TOOLS = {
    "mmdebstrap": "mmdebstrap",
    "systemd-nspawn": "systemd-container",
    "unshare": "util-linux",
    "ip": "iproute2",
    "nft": "nftables",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "mkfs.ext4": "e2fsprogs",
}
"""Programs that nspawn hosts need here, and the Debian packages that bring them."""

# Process 1 of a process namespace of its own, in a mount namespace of its own: whatever ends it, every process and
# every mount of the host is gone with it. Arguments: the host's folder, the root tree, name, network namespace.
_SUPERVISE = r"""
set -eu
folder=$1 tree=$2 name=$3 netns=$4
if [ -e "$folder/disk.img" ]; then
    mount -o loop "$folder/disk.img" "$folder/disk"
fi
mkdir -p "$folder/pci" "$folder/disk/upper" "$folder/disk/work" "$folder/disk/docker"
mount -t overlay -o "lowerdir=$tree,upperdir=$folder/disk/upper,workdir=$folder/disk/work" overlay "$folder/root"
# systemd in the container wants cgroups of version 2. Where this machine has version 1, they are mounted over it in
# this namespace only. Each host gets a branch of its own: two systemds in one branch would stop each other's services.
if [ ! -e /sys/fs/cgroup/cgroup.controllers ]; then
    umount -R /sys/fs/cgroup
    mount -t cgroup2 none /sys/fs/cgroup
fi
mkdir -p "/sys/fs/cgroup/gpurack-$name"
echo 0 > "/sys/fs/cgroup/gpurack-$name/cgroup.procs"
# Pretended cards over those of this machine; see pci.py.
pci=()
[ ! -d /sys/bus/pci/devices ] || pci=("--bind=$folder/pci:/sys/bus/pci/devices")
while :; do
    rc=0
    # Without the writable API file systems, Docker cannot set up networks inside.
    SYSTEMD_NSPAWN_API_VFS_WRITABLE=1 systemd-nspawn --quiet --register=no --keep-unit --boot --machine="$name" \
        --directory="$folder/root" --network-namespace-path="/run/netns/$netns" \
        --bind="$folder/disk/docker:/var/lib/docker" "${pci[@]}" \
        --capability=all --system-call-filter="bpf keyctl add_key" --resolv-conf=off --timezone=off \
        --link-journal=no --console=pipe || rc=$?
    [ "$rc" = 133 ] || exit "$rc" # 133: it wants to be started again
done
"""


class NspawnMachine(Machine):
    """A systemd-nspawn host."""

    driver: ClassVar[str] = "nspawn"

    def __init__(
        self,
        name: str,
        release: str,
        address: str,
        port: int = 22,
        owner: int | None = None,
        disk_mib: int | None = None,
    ) -> None:
        super().__init__(name, release, address, port, owner)
        self.tree = root(release)
        self.disk_mib = disk_mib
        self.supervisor: int | None = None
        self.supervisor_started: int | None = None

    @classmethod
    def place(
        cls, name: str, release: str, *, taken: list[Machine], owner: int | None, disk_mib: int | None
    ) -> NspawnMachine:
        """Return a new host on the lab's bridge."""
        address = network.free_address(machine.address for machine in taken)
        return cls(name, release, address, owner=owner, disk_mib=disk_mib)

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> NspawnMachine:
        """Return the host another process has made."""
        machine = cls.__new__(cls)
        Machine.__init__(machine, state["name"], state["release"], state["address"], state["port"])
        machine.owner, machine.owner_started = state["owner"], state["owner_started"]
        machine.tree, machine.disk_mib = Path(state["tree"]), state["disk_mib"]
        machine.supervisor, machine.supervisor_started = state["supervisor"], state["supervisor_started"]
        return machine

    def state(self) -> dict[str, Any]:
        """Return what another process needs to know of the host."""
        return {
            **super().state(),
            "tree": str(self.tree),
            "disk_mib": self.disk_mib,
            "supervisor": self.supervisor,
            "supervisor_started": self.supervisor_started,
        }

    @property
    def running(self) -> bool:
        """Whether the supervisor, and with it the host, is alive."""
        return self.supervisor is not None and started(self.supervisor) == self.supervisor_started is not None

    def create(self) -> None:
        """Make the host's disk: an empty overlay with its identity."""
        for folder in ("root", "disk"):
            (self.folder / folder).mkdir()
        self.make_keys()
        if self.disk_mib is None:
            self._write_identity(self.folder / "disk")
            return
        image = self.folder / "disk.img"
        with image.open("wb") as file:
            file.truncate(self.disk_mib * 1024 * 1024)
        staging = self.folder / "staging"
        self._write_identity(staging)
        run(["mkfs.ext4", "-q", "-F", "-m", "0", "-d", str(staging), str(image)])
        shutil.rmtree(staging)

    def _write_identity(self, disk: Path) -> None:
        etc = disk / "upper/etc"
        (etc / "ssh").mkdir(parents=True)
        for file in self.folder.glob("ssh_host_*_key*"):
            shutil.copy(file, etc / "ssh")
        (etc / "hostname").write_text(f"{self.name}\n")
        (etc / "hosts").write_text(f"127.0.0.1 localhost\n127.0.1.1 {self.name}\n")
        (etc / "resolv.conf").write_text(resolv_conf())
        (etc / "machine-id").write_text(os.urandom(16).hex() + "\n")
        home = disk / "upper/home" / self.user
        ssh = home / ".ssh"
        ssh.mkdir(parents=True, mode=0o700)
        keys = ssh / "authorized_keys"
        keys.write_text(self.key.with_suffix(".pub").read_text())
        keys.chmod(0o600)
        owner = (self.tree / "home" / self.user).stat()
        for path in (home, ssh, keys):
            os.chown(path, owner.st_uid, owner.st_gid)
        home.chmod(owner.st_mode & 0o777)

    def pretend_cards(self, cards: Sequence[str], *, nvswitches: int = 0, driver: str | None = None) -> None:
        """Show pretended devices on the host's PCI bus, at once and after every boot."""
        pci.pretend(self.folder / "pci", cards, nvswitches=nvswitches, driver=driver)

    def start(self) -> None:
        """Boot the host and wait until SSH answers; about a second."""
        if self.running:
            return
        with lab_lock():  # several hosts may be the first at the same time
            network.up()
        network.connect(self.name, self.address)
        with (self.folder / "console.log").open("ab") as console:
            process = subprocess.Popen(
                [
                    *(
                        "unshare",
                        "--mount",
                        "--pid",
                        "--fork",
                        "--kill-child",
                        "--mount-proc",
                        "--propagation",
                        "private",
                    ),
                    *("bash", "-c", _SUPERVISE, "gpurack-lab"),
                    *(str(self.folder), str(self.tree), self.name, network.namespace(self.name)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                start_new_session=True,
            )
        self.supervisor, self.supervisor_started = process.pid, started(process.pid)
        self.save()
        self.wait_for_ssh()

    def kill(self) -> None:
        """Cut the power."""
        if self.running and self.supervisor is not None:
            os.kill(self.supervisor, signal.SIGKILL)
            deadline = time.monotonic() + 20
            while self.running or self._cgroup_busy():
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(self.supervisor, os.WNOHANG)
                if time.monotonic() > deadline:
                    raise LabError(f"{self.name}: processes of the host survive a kill; see `ps` for gpurack-lab")
                time.sleep(0.01)
        self.supervisor = None

    def release_resources(self) -> None:
        """Remove the host's network and cgroups."""
        network.disconnect(self.name, self.address)
        for tree in self._cgroups():
            for folder, _, _ in os.walk(tree, topdown=False):
                with contextlib.suppress(OSError):
                    Path(folder).rmdir()

    def _cgroups(self) -> list[Path]:
        places = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"))
        return [path for place in places if (path := place / f"gpurack-{self.name}").is_dir()]

    def _cgroup_busy(self) -> bool:
        for tree in self._cgroups():
            events = tree / "cgroup.events"
            if events.exists() and "populated 1" in events.read_text():
                return True
        return False
