"""``gpurack lab vagrant-test``: the Vagrantfile, the literal command and every check, on a virtual machine.

A box is made from a lab disk image, ``vagrant up`` boots it under libvirt in a sandbox, ``pyinfra inventories/lab
deploys/`` deploys to it twice, and ``gpurack verify`` runs the checks of every enabled role. docs/vagrant.md says more.
"""

from __future__ import annotations

import fcntl
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType

import click

from gpurack.lab import rootfs, vmimage
from gpurack.lab.demo import Run
from gpurack.lab.ollama_double import archive
from gpurack.lab.qemu import CPUS, accelerator
from gpurack.lab.sandbox import Sandbox, SandboxError, remove

ROOT = Path(__file__).resolve().parents[3]
"""The repository; the Vagrantfile and the inventory are in it."""

BOX = "gpurack/lab"
MEMORY_MIB = 2048

NETWORK, GATEWAY = "vagrant-libvirt", "192.168.121.1"
"""libvirt network that vagrant-libvirt makes, and this machine's address in it: both its defaults."""

NTP_POOL = "2.debian.pool.ntp.org"
"""Debian's own choice, and the base role's default."""

PROGRAMS = {
    "vagrant": "vagrant",
    "libvirtd": "libvirt-daemon",
    "virtlogd": "libvirt-daemon",
    "virsh": "libvirt-clients",
    "dbus-daemon": "dbus",
    "dnsmasq": "dnsmasq-base",
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-img": "qemu-utils",
    "mkfs.ext4": "e2fsprogs",
    "ssh-keygen": "openssh-client",
    "nft": "nftables",
    "ip": "iproute2",
    "mmdebstrap": "mmdebstrap",
}
"""Program the test starts -> Debian package it is in."""

VAGRANT_PACKAGES = tuple(
    sorted({*PROGRAMS.values(), *vmimage.TOOLS.values(), "libvirt-daemon-system", "vagrant-libvirt"})
)
"""Debian packages the test needs; the Makefile installs them. libvirt's packages bring iptables, or firewalld."""

INVENTORY = "inventories/lab"
DEPLOY = ("pyinfra", INVENTORY, "deploys/", "-y")
VERIFY = ("gpurack", "verify", INVENTORY)


class VagrantTestError(Exception):
    """A step of the test failed; the message says which one and why."""


def missing() -> str | None:
    """Return what this machine lacks for the test, with the cure; None when it is ready."""
    if os.geteuid() != 0:
        return "not root: the test makes namespaces and a disk image; run it with sudo"
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    absent = sorted({package for program, package in PROGRAMS.items() if not shutil.which(program, path=path)})
    if not absent and not _has_libvirt_plugin():
        absent = ["vagrant-libvirt"]
    if absent:
        return f"missing: {', '.join(absent)}; install with: apt-get install {' '.join(absent)}"
    return None


def _has_libvirt_plugin() -> bool:
    """Tell whether Vagrant's libvirt provider is there, as a Debian package or a plugin of the user's own."""
    if any(Path("/usr/share/rubygems-integration").glob("*/specifications/vagrant-libvirt-*.gemspec")):
        return True
    listed = subprocess.run(["vagrant", "plugin", "list"], capture_output=True, text=True, check=False)
    return "vagrant-libvirt" in listed.stdout


def build_box(image: vmimage.Image, folder: Path) -> Path:
    """Write a box of Vagrant's libvirt provider that boots a lab image.

    Args:
        image: disk image to put into the box.
        folder: where the box is written.
    """
    vagrantfile = f"""\
Vagrant.configure("2") do |config|
  config.ssh.username = "{rootfs.USER}"
  config.ssh.private_key_path = File.expand_path("vagrant_private_key", __dir__)
end
"""
    metadata = {"provider": "libvirt", "format": "qcow2", "virtual_size": vmimage.SIZE_GIB}
    box = folder / "lab.box"
    # Not compressed: the box is read once, by this machine.
    with tarfile.open(box, "w") as out:
        for name, content, mode in (
            ("metadata.json", json.dumps(metadata), 0o644),
            ("Vagrantfile", vagrantfile, 0o644),
            ("vagrant_private_key", image.key.read_text(), 0o600),
        ):
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content.encode()), mode
            out.addfile(member, io.BytesIO(content.encode()))
        out.add(image.disk, "box.img")
    return box


class Steps:
    """Progress on standard output: what is being done, and how long it took."""

    def __init__(self) -> None:
        """Start the clock."""
        self.taken: list[tuple[str, float]] = []

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        """Announce a step, and its duration when it ends."""
        click.secho(f"==> {title}", bold=True)
        started = time.monotonic()
        try:
            yield
        finally:
            seconds = time.monotonic() - started
            self.taken.append((title, seconds))
            click.echo(f"{seconds:5.0f}  done")

    def summary(self) -> str:
        """Return the steps and their durations as lines, the sum last."""
        whole = ("whole test", sum(seconds for _, seconds in self.taken))
        return "\n".join(f"{seconds:6.0f} s  {title}" for title, seconds in [*self.taken, whole])


def environment(image: vmimage.Image, folder: Path) -> dict[str, str]:
    """Return the environment that makes the project's Vagrantfile use a box of our own, under libvirt.

    Args:
        image: image in the box; its kernel is started from outside the disk.
        folder: where Vagrant keeps its state instead of the user's home and the repository.
    """
    programs = f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("VAGRANT_", "LIBVIRT_"))}
    return {
        **kept,
        "PATH": programs,
        "VAGRANT_HOME": str(folder / "home"),
        "VAGRANT_DOTFILE_PATH": str(folder / "dot"),
        "VAGRANT_DEFAULT_PROVIDER": "libvirt",
        "VAGRANT_CHECKPOINT_DISABLE": "1",
        "VAGRANT_NO_COLOR": "1",
        "GPURACK_BOX": BOX,
        "GPURACK_HOSTS": "1",
        "GPURACK_RELEASE": image.release,
        "GPURACK_VAGRANT_DRIVER": "kvm" if accelerator() == "kvm" else "qemu",
        "GPURACK_CPUS": str(CPUS[accelerator()]),
        "GPURACK_MEMORY_MIB": os.environ.get("GPURACK_MEMORY_MIB", str(MEMORY_MIB)),
        "GPURACK_KERNEL": str(image.kernel),
        "GPURACK_INITRD": str(image.initrd),
        "GPURACK_CMDLINE": vmimage.COMMAND_LINE,
        # The lab's hosts cannot be reached from the sandbox, nor can it be seen there which of them still run.
        "GPURACK_LAB_STATE": str(folder / "hosts"),
        "PYTHONUNBUFFERED": "1",
    }


def run_test(release: str) -> None:
    """Run the whole test.

    Args:
        release: Debian release of the virtual machine, "bookworm" or "trixie".

    Raises:
        VagrantTestError: a step failed.
        gpurack.lab.sandbox.SandboxError: libvirt could not be started.
        gpurack.lab.vmimage.ImageError: the disk image could not be built.
    """
    steps = Steps()
    with ExitStack() as stack:
        folder = stack.enter_context(_folder())
        with steps.step(f"disk image and container images, Debian {release}"):
            image = vmimage.image(release)
            archive()
        with steps.step("box"):
            box = build_box(image, folder)
        with steps.step("libvirt in a sandbox"):
            hidden, standin = ROOT / ".lab", folder / "lab"
            for path in (hidden, standin):
                path.mkdir(mode=0o700, exist_ok=True)
            state = folder / "libvirt"
            state.mkdir()
            sandbox = stack.enter_context(Sandbox(state, rootfs.resolv_conf(), hidden=hidden, standin=standin))
        env = environment(image, folder)

        def run(*command: str, watch: Callable[[Iterator[str]], None] = _show) -> None:
            with steps.step(" ".join(command)), sandbox.run(command, cwd=ROOT, env=env) as process:
                assert process.stdout is not None  # noqa: S101 - a sandbox gives a pipe
                watch(process.stdout)
                if code := process.wait():
                    raise VagrantTestError(f"{' '.join(command)}: exit code {code}")

        run("vagrant", "box", "add", "--name", BOX, str(box))
        box.unlink()
        run("vagrant", "up")
        listed = json.loads((standin / "vagrant.json").read_text())
        click.echo(f"       {listed[0]['name']} is at {listed[0]['address']}")
        with steps.step("time server"):
            stack.enter_context(_time_server(sandbox, env))
        run(*DEPLOY)
        again = Run()
        run(*DEPLOY, watch=lambda lines: _follow(again, lines))
        if again.changed or not again.operations:
            click.echo("\n".join(again.lines))
            raise VagrantTestError(
                f"the second run changed something: {again.changed} of {again.operations} operations, see above"
            )
        click.echo(f"       {again.operations} operations, no changes")
        run(*VERIFY)
        run("vagrant", "destroy", "-f")
        if (standin / "vagrant.json").exists():
            raise VagrantTestError("vagrant destroy left the host in .lab/vagrant.json")
    click.echo(steps.summary())


@contextmanager
def _time_server(sandbox: Sandbox, env: Mapping[str, str]) -> Iterator[None]:
    """Answer for the NTP pool; see timeserver.py for why."""
    with sandbox.run([sys.executable, "-m", "gpurack.lab.timeserver"], cwd=ROOT, env=env) as server:
        if server.stdout is None or server.stdout.readline().strip() != "ready":
            raise VagrantTestError("the time server's double does not start")
        entry = f"<host ip='{GATEWAY}'><hostname>{NTP_POOL}</hostname></host>"
        update = ["virsh", "-q", "net-update", NETWORK, "add", "dns-host", entry, "--live"]
        with sandbox.run(update, cwd=ROOT, env=env) as process:
            said, _ = process.communicate()
            if process.returncode:
                raise VagrantTestError(f"{' '.join(update)}: {said.strip()}")
        yield


def _show(lines: Iterator[str]) -> None:
    """Pass a program's lines on, each with the seconds since it began, without the progress bars."""
    started = time.monotonic()
    for line in lines:
        if line.strip() and "Progress:" not in line:
            click.echo(f"{time.monotonic() - started:5.0f}  {line.rstrip()}")


def _follow(run: Run, lines: Iterator[str]) -> None:
    """Read pyinfra's output without showing it; it is of interest only if something changed."""
    for _operation in run.follow(lines):
        pass


@contextmanager
def _folder() -> Iterator[Path]:
    """Give the folder for this run's state, empty; wait for another test on this machine to end."""
    rootfs.CACHE.mkdir(parents=True, exist_ok=True)
    folder = rootfs.CACHE / "vagrant-test"
    with (rootfs.CACHE / "vagrant-test.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            click.echo("another vagrant-test is at work on this machine, waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        remove(folder)  # of a run that was killed
        folder.mkdir(mode=0o700)
        try:
            yield folder
        finally:
            remove(folder)


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


@click.command("vagrant-test")
@click.option(
    "--release",
    type=click.Choice(list(rootfs.RELEASES)),
    default="trixie",
    envvar="GPURACK_RELEASE",
    show_default=True,
    show_envvar=True,
    help="Debian release of the virtual machine.",
)
def vagrant_test(release: str) -> None:
    """Deploy to a virtual machine made by the project's Vagrantfile, and run every role's checks on it."""
    if lack := missing():
        raise click.ClickException(lack)
    # The default action would end this process without taking the sandbox down.
    signal.signal(signal.SIGTERM, _terminate)
    signal.signal(signal.SIGHUP, _terminate)
    try:
        run_test(release)
    except (VagrantTestError, SandboxError, vmimage.ImageError) as error:
        raise click.ClickException(str(error)) from error
    except KeyboardInterrupt:
        click.echo("interrupted; the virtual machine and its network are gone", err=True)
        sys.exit(130)
