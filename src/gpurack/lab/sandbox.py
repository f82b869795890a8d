"""libvirt in namespaces of its own: a machine's network, mounts and processes are not touched by what runs in it.

``make vagrant-test`` must work where PID 1 is not systemd, beside a libvirt that may already be in use, and must leave
nothing behind. libvirtd, its network and its virtual machines therefore live in fresh network, mount and process
namespaces with private copies of the folders libvirt writes to. The kernel ends every process in them, and frees the
rest, when the sandbox's first process goes; that one is tied to the process that started it.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

from gpurack.lab import network
from gpurack.lab.machine import HOSTS, lab_lock

INTERFACE = "gpurack-vt"
"""This machine's end of the sandbox's network cable."""

OUTER, INNER, PREFIX = "10.198.77.1", "10.198.77.2", 30
"""Addresses of the cable's ends; the sandbox reaches the package mirror through the first."""

TABLE = "gpurack_vagrant"
"""nftables table with the rule that lets the sandbox's traffic leave under this machine's address."""

FORWARDING_WAS_OFF = HOSTS / "forwarding-was-off"
"""The lab's note that forwarding is to be switched off again; see network.py."""

# The first process in the sandbox. Arguments: folder for private state, folder to hide, stand-in for it.
# libvirtd may neither fence its virtual machines off with cgroups nor with mount namespaces here: the first needs
# systemd, the second is what the sandbox already is. The shell stays, waiting: it takes leave of the processes libvirt
# detaches, each of which libvirt would otherwise watch dying for 40 seconds.
_INIT = """\
set -eu
state=$1 hidden=$2 standin=$3
mkdir -p "$state/lib" "$state/log" "$state/cache" "$state/etc"
resolver=$(readlink -m /etc/resolv.conf)
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/dbus /run/libvirt /run/lock "$(dirname "$resolver")"
[ -e "$resolver" ] || : > "$resolver"
mount --bind "$state/resolv.conf" "$resolver"
cp -a /etc/libvirt "$state/etc/"
mount --bind "$state/etc/libvirt" /etc/libvirt
rm -rf /etc/libvirt/qemu/networks/autostart /etc/libvirt/qemu/autostart
for part in lib log cache; do
    mkdir -p "/var/$part/libvirt"
    mount --bind "$state/$part" "/var/$part/libvirt"
done
mount --bind "$standin" "$hidden"
cat > /etc/libvirt/qemu.conf <<END
user = "root"
group = "root"
security_driver = "none"
namespaces = []
cgroup_controllers = []
remember_owner = 0
END
cat > /etc/libvirt/libvirtd.conf <<END
log_outputs = "2:file:$state/libvirtd.log"
END
ip link set lo up
dbus-daemon --system --fork
virtlogd -d
libvirtd -d
tries=0
until virsh -q -c qemu:///system list >/dev/null 2>&1; do
    tries=$((tries + 1))
    [ "$tries" -lt 100 ] || { echo "libvirtd does not answer"; tail -n 5 "$state/libvirtd.log"; exit 1; }
    sleep 0.2
done
echo ready
sleep infinity &
wait
"""

_RULES = f"""\
table ip {TABLE} {{}}
delete table ip {TABLE}
table ip {TABLE} {{
    chain clamp {{
        type filter hook forward priority mangle;
        iifname "{INTERFACE}" tcp flags syn tcp option maxseg size set rt mtu
        oifname "{INTERFACE}" tcp flags syn tcp option maxseg size set rt mtu
    }}
    chain leave {{
        type nat hook postrouting priority srcnat;
        ip saddr {OUTER}/{PREFIX} oifname != "{INTERFACE}" masquerade
    }}
}}
"""


class SandboxError(Exception):
    """The sandbox could not be set up; the message says which step failed and how."""


class Sandbox:
    """Namespaces with a libvirtd of their own and a way out to the network.

    Use it as a context manager. ``run`` starts programs in it.

    Attributes:
        state: folder for everything libvirt writes; it is the caller's to remove.
    """

    def __init__(self, state: Path, resolv_conf: str, *, hidden: Path, standin: Path) -> None:
        """Describe a sandbox; nothing is started yet.

        Args:
            state: existing folder for everything libvirt writes.
            resolv_conf: text of the name resolver's configuration; no loopback addresses, they are the sandbox's own.
            hidden: folder that programs in the sandbox are not to see.
            standin: folder they see in its place.
        """
        self.state = state
        self._resolv_conf = resolv_conf
        self._hidden, self._standin = hidden, standin
        self._init: subprocess.Popen[str] | None = None
        self._forward: list[list[str]] = []

    def __enter__(self) -> Sandbox:
        try:
            self._start()
            self._connect()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start(self) -> None:
        (self.state / "resolv.conf").write_text(self._resolv_conf)
        unshare = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        self._init = subprocess.Popen(
            # Killed by the kernel should this process die without a chance to clean up.
            [
                *("setpriv", "--pdeathsig", "KILL", *unshare, "--propagation", "private"),
                *("sh", "-c", _INIT, "init", str(self.state), str(self._hidden), str(self._standin)),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # A Ctrl-C is for the program in the foreground; the sandbox is taken down by close().
            start_new_session=True,
        )
        assert self._init.stdout is not None  # noqa: S101 - it was asked for above
        said = []
        for line in self._init.stdout:
            if line.strip() == "ready":
                return
            said.append(line.rstrip())
        raise SandboxError("libvirt could not be started in its sandbox:\n" + "\n".join(said[-10:]))

    def _connect(self) -> None:
        """Lay the cable to the sandbox, and let its traffic leave."""
        assert self._init is not None  # noqa: S101 - called after _start
        _quiet("ip", "link", "delete", INTERFACE)
        inside = self._nsenter()
        for command in (
            f"ip link add {INTERFACE} type veth peer name uplink netns {self._init.pid}",
            f"ip address add {OUTER}/{PREFIX} dev {INTERFACE}",
            f"ip link set {INTERFACE} up",
            f"{' '.join(inside)} ip address add {INNER}/{PREFIX} dev uplink",
            f"{' '.join(inside)} ip link set uplink up",
            f"{' '.join(inside)} ip route add default via {OUTER}",
        ):
            _run(command.split())
        self._forward_packets()
        _run(["nft", "-f", "-"], text=_RULES)
        self._pass_firewall()

    def _forward_packets(self) -> None:
        """Let this machine forward packets; the lab's last host may have taken that back since."""
        with lab_lock():
            if network.FORWARDING.read_text().strip() == "0":
                network.FORWARDING.write_text("1")
                FORWARDING_WAS_OFF.touch()

    def _pass_firewall(self) -> None:
        """Let the sandbox's packets through where another program (Docker, for one) made dropping the default."""
        if not shutil.which("iptables"):
            return
        policy = subprocess.run(["iptables", "-S", "FORWARD"], capture_output=True, text=True, check=False).stdout
        if not policy.startswith("-P FORWARD DROP"):
            return
        for direction in ("-i", "-o"):
            rule = ["FORWARD", direction, INTERFACE, "-j", "ACCEPT"]
            _quiet("iptables", "-w", "-D", *rule)  # of a run that was killed
            _run(["iptables", "-w", "-I", *rule])
            self._forward.append(rule)

    def _nsenter(self) -> list[str]:
        assert self._init is not None  # noqa: S101 - called after _start
        spaces = f"/proc/{self._init.pid}/ns"
        return ["nsenter", f"--net={spaces}/net", f"--mount={spaces}/mnt", f"--pid={spaces}/pid_for_children", "--"]

    @contextmanager
    def run(self, command: Sequence[str], *, cwd: Path, env: Mapping[str, str]) -> Iterator[subprocess.Popen[str]]:
        """Run a program in the sandbox; its output, errors included, is a pipe of lines.

        Raises:
            SandboxError: the sandbox is not running.
        """
        if self._init is None or self._init.poll() is not None:
            raise SandboxError(f"the sandbox is gone; its log is {self.state / 'libvirtd.log'}")
        self._forward_packets()
        # nsenter loses the current folder when it changes mount namespaces.
        line = [*self._nsenter(), "env", f"--chdir={cwd}", *command]
        with subprocess.Popen(
            line,
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as process:
            try:
                yield process
            finally:
                if process.poll() is None:
                    process.terminate()

    def close(self) -> None:
        """End every process in the sandbox and take its cable and rules away; safe to call again."""
        if self._init is not None:
            self._init.kill()
            with suppress(subprocess.TimeoutExpired):
                self._init.wait(10)
            if self._init.stdout is not None:
                self._init.stdout.close()
            self._init = None
        for rule in self._forward:
            _quiet("iptables", "-w", "-D", *rule)
        self._forward.clear()
        _quiet("nft", "delete", "table", "ip", TABLE)
        _quiet("ip", "link", "delete", INTERFACE)
        with lab_lock():
            # With hosts of the lab about, forwarding goes with the last of them.
            if FORWARDING_WAS_OFF.exists() and not Path(f"/sys/class/net/{network.BRIDGE}").exists():
                network.FORWARDING.write_text("0")
                FORWARDING_WAS_OFF.unlink()


def _run(command: Sequence[str], text: str | None = None) -> None:
    result = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if result.returncode:
        raise SandboxError(f"{' '.join(command)}: {result.stderr.strip()}")


def _quiet(*command: str) -> None:
    """Run a command that may find nothing to do."""
    subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)


def remove(folder: Path, *, timeout_seconds: float = 10) -> None:
    """Remove a sandbox's folder once the kernel has let go of the mounts on it."""
    until = time.monotonic() + timeout_seconds
    while folder.exists():
        try:
            shutil.rmtree(folder)
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.2)
