"""Disk images of virtual machines: a lab root tree with a kernel of its own, built once and kept.

An image is an ext4 file system without a partition table, and the kernel and initial RAM disk to start it with.
Machines write to an overlay, never to the image. What tells one machine from another (name, host keys, who may log in)
is handed over at the first boot, through QEMU's firmware configuration device; a machine that is handed nothing makes
host keys of its own and lets the image's key in.
"""

from __future__ import annotations

import hashlib
import io
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gpurack.lab import rootfs
from gpurack.lab.machine import HOSTS, LabError, run

SIZE_GIB = 12
"""Size the guest sees; the file on disk is sparse."""

TOOLS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-img": "qemu-utils",
    "mkfs.ext4": "e2fsprogs",
    "ssh-keygen": "openssh-client",
    "mmdebstrap": "mmdebstrap",
}
"""Programs that building and running an image takes, and the Debian packages that bring them."""

IDENTITY = "opt/gpurack/identity"
"""Name of the firmware configuration entry with the machine's identity."""

AUTHORIZED_KEYS = f"/home/{rootfs.USER}/.ssh/authorized_keys"

COMMAND_LINE = "root=/dev/vda rw console=ttyS0 net.ifnames=0 mitigations=off"
"""Kernel command line. Without mitigations, page table isolation's TLB flushes do not slow down emulation."""

# Only what finding and mounting the root file system takes; a full initial RAM disk is half a minute of emulated boot.
_INITRAMFS = "MODULES=list\nCOMPRESS=gzip\n"
_MODULES = "virtio_pci\nvirtio_blk\next4\n"

_NETWORK = """\
[Match]
Name=eth*

[Network]
DHCP=yes
"""

_FIRST_BOOT_UNIT = f"""\
[Unit]
Description=Identity of this lab machine
DefaultDependencies=no
ConditionPathExists=!/var/lib/gpurack-lab/identified
After=local-fs.target systemd-tmpfiles-setup.service
Before=sysinit.target systemd-networkd.service ssh.service ssh.socket
Conflicts=shutdown.target
Before=shutdown.target

[Service]
Type=oneshot
RemainAfterExit=yes
WorkingDirectory=/etc/ssh
ExecStart=-/sbin/modprobe qemu_fw_cfg
ExecStart=/bin/sh -ec 'f=/sys/firmware/qemu_fw_cfg/by_name/{IDENTITY}/raw; [ ! -e "$f" ] || tar -x -f "$f" -C /'
ExecStart=/bin/hostname -F /etc/hostname
ExecStart=/bin/sh -c '[ -e ssh_host_ed25519_key ] || ssh-keygen -q -t ed25519 -N "" -f ssh_host_ed25519_key'
ExecStart=/bin/sh -c '[ -e ssh_host_ecdsa_key ] || ssh-keygen -q -t ecdsa -N "" -f ssh_host_ecdsa_key'
ExecStart=/bin/mkdir -p /var/lib/gpurack-lab
ExecStart=/bin/touch /var/lib/gpurack-lab/identified
ExecStart=/bin/sync

[Install]
WantedBy=sysinit.target
"""

# Runs in a mount and process namespace of its own, so that no mount and no process is left behind whatever happens.
# Arguments: the root tree, the folder to work in, the disk's size, the administrator, further packages.
_BUILD = """\
set -eu
root=$1 work=$2 tree=$2/merged
mkdir "$work/upper" "$work/workdir" "$tree"
mount -t overlay -o "lowerdir=$root,upperdir=$work/upper,workdir=$work/workdir" overlay "$tree"
mkdir -p "$tree/proc" "$tree/sys" "$tree/dev" "$tree/run" "$tree/tmp"
mount -t proc proc "$tree/proc"
mount -t sysfs -o ro sysfs "$tree/sys"
mount -t tmpfs tmpfs "$tree/dev"
for node in null zero full random urandom tty; do
    touch "$tree/dev/$node"
    mount --bind "/dev/$node" "$tree/dev/$node"
done
ln -s /proc/self/fd "$tree/dev/fd"

printf '#!/bin/sh\\nexit 101\\n' > "$tree/usr/sbin/policy-rc.d"
chmod 755 "$tree/usr/sbin/policy-rc.d"
rm -f "$tree/etc/resolv.conf"
cp "$work/resolv.conf" "$tree/etc/resolv.conf"
mkdir -p "$tree/etc/initramfs-tools/conf.d"
cp "$work/initramfs" "$tree/etc/initramfs-tools/conf.d/lab"
cp "$work/modules" "$tree/etc/initramfs-tools/modules"
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8
chroot "$tree" apt-get -q update
chroot "$tree" apt-get -q install -y --no-install-recommends -o Dpkg::Options::=--force-confold \
    linux-image-cloud-amd64 initramfs-tools kmod systemd-resolved $5
rm -f "$tree"/var/cache/apt/archives/linux-image-*.deb
rm "$tree/usr/sbin/policy-rc.d"

cp "$work/network" "$tree/etc/systemd/network/80-lab.network"
cp "$work/unit" "$tree/etc/systemd/system/gpurack-lab-identity.service"
chroot "$tree" systemctl -q enable gpurack-lab-identity.service systemd-networkd.service systemd-resolved.service
ln -sf ../run/systemd/resolve/stub-resolv.conf "$tree/etc/resolv.conf"
install -d -m 700 "$tree/home/$4/.ssh"
install -m 600 "$work/out/key.pub" "$tree/home/$4/.ssh/authorized_keys"
chroot "$tree" chown -R "$4:$4" "/home/$4/.ssh"
rm -f "$tree"/etc/ssh/ssh_host_*
: > "$tree/etc/machine-id"
echo lab > "$tree/etc/hostname"
printf '127.0.0.1 localhost\\n127.0.1.1 lab\\n' > "$tree/etc/hosts"
echo '/dev/vda / ext4 defaults 0 1' > "$tree/etc/fstab"

cp "$tree"/boot/vmlinuz-* "$work/out/vmlinuz"
cp "$tree"/boot/initrd.img-* "$work/out/initrd.img"
umount "$tree"/dev/null "$tree"/dev/zero "$tree"/dev/full "$tree"/dev/random "$tree"/dev/urandom "$tree"/dev/tty
umount "$tree/dev" "$tree/sys" "$tree/proc"
truncate -s "$3" "$work/disk.img"
mkfs.ext4 -q -F -L lab -d "$tree" "$work/disk.img"
qemu-img convert -f raw -O qcow2 "$work/disk.img" "$work/out/disk.qcow2"
"""


class ImageError(LabError):
    """A disk image could not be built; the message says which step failed and how."""


@dataclass(frozen=True)
class Image:
    """A virtual machine's disk, never written to, with the kernel that starts it.

    Attributes:
        release: Debian release in it.
        folder: where all of it lies.
        disk: qcow2 file, the backing file of overlays.
        kernel: kernel that boots it.
        initrd: initial RAM disk that belongs to the kernel.
        key: private key of the administrator, for machines that are handed no key of their own.
    """

    release: str
    folder: Path
    disk: Path
    kernel: Path
    initrd: Path
    key: Path

    @classmethod
    def at(cls, release: str, folder: Path) -> Image:
        """Return the image that lies in a folder."""
        return cls(release, folder, *(folder / name for name in ("disk.qcow2", "vmlinuz", "initrd.img", "key")))


def image(release: str, packages: Sequence[str] = ()) -> Image:
    """Return the image of a Debian release, built if it is not there yet (about a minute).

    Args:
        release: "bookworm" or "trixie".
        packages: Debian packages in it besides: what an emulated machine takes many minutes to install.

    Raises:
        ImageError: the build failed.
    """
    root = rootfs.root(release)
    extra = " ".join(packages)
    kind = f"vm-{release}" + (f"+{hashlib.sha256(extra.encode()).hexdigest()[:8]}" if packages else "")
    recipe = "\n".join([root.name, _BUILD, _INITRAMFS, _MODULES, _NETWORK, _FIRST_BOOT_UNIT, str(SIZE_GIB)])
    digest = hashlib.sha256(recipe.encode()).hexdigest()[:12]
    folder = rootfs.CACHE / f"{kind}-{digest}"
    with rootfs.locked(rootfs.CACHE / f"{kind}.lock"):
        if not folder.is_dir():
            _build(root, folder, extra)
            for old in rootfs.CACHE.glob(f"{kind}-*"):
                if old != folder and not _in_use(old):
                    shutil.rmtree(old)
    return Image.at(release, folder)


def _in_use(folder: Path) -> bool:
    """Tell whether a machine has its overlay on an image."""
    return any(str(folder) in state.read_text() for state in HOSTS.glob("*/state.json"))


def _build(root: Path, folder: Path, packages: str) -> None:
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as name:
        work = Path(name)
        out = work / "out"
        out.mkdir()
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "lab", "-f", str(out / "key")], check=True)
        files = {
            "resolv.conf": rootfs.resolv_conf(),
            "initramfs": _INITRAMFS,
            "modules": _MODULES,
            "network": _NETWORK,
            "unit": _FIRST_BOOT_UNIT,
        }
        for file, text in files.items():
            (work / file).write_text(text)
        namespace = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--propagation", "private"]
        command = ["sh", "-c", _BUILD, "build", str(root), str(work), f"{SIZE_GIB}G", rootfs.USER, packages]
        result = subprocess.run(
            [*namespace, *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if result.returncode:
            last = "\n".join(result.stdout.splitlines()[-15:])
            raise ImageError(f"{folder.name}: the disk image could not be built, see the last lines:\n{last}")
        out.rename(folder)


def overlay(image: Image, target: Path) -> None:
    """Make an empty qcow2 overlay on an image's disk."""
    run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(image.disk), "-F", "qcow2", str(target)])


def identity(files: Mapping[str, tuple[str, int]]) -> bytes:
    """Return the archive that a machine unpacks at its first boot.

    Args:
        files: absolute path in the machine -> (text, permission bits). Files belong to root, but for the
            administrator's keys.
    """
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path, (text, mode) in files.items():
            member = tarfile.TarInfo(path.lstrip("/"))
            member.uname = member.gname = rootfs.USER if path == AUTHORIZED_KEYS else "root"
            content = text.encode()
            member.size, member.mode = len(content), mode
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()
