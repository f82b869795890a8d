"""The lab's network: one bridge, a veth pair and a network namespace a host, and a way out to package mirrors."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterable
from pathlib import Path

from gpurack.lab.machine import HOSTS, LabError, run

PREFIX = os.environ.get("GPURACK_LAB_PREFIX", "10.199.0")
"""First three numbers of the lab's /24 network."""

BRIDGE = os.environ.get("GPURACK_LAB_BRIDGE", "gpurack-lab")
"""At most 15 characters, as the kernel wants interface names."""
TABLE = BRIDGE.replace("-", "_")

FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")

_RULES = f"""\
table ip {TABLE}
delete table ip {TABLE}
table ip {TABLE} {{
    chain postrouting {{
        type nat hook postrouting priority srcnat;
        ip saddr {PREFIX}.0/24 ip daddr != {PREFIX}.0/24 masquerade
    }}
}}
"""


def free_address(taken: Iterable[str]) -> str:
    """Return an address no host has.

    Raises:
        LabError: all are taken.
    """
    used = set(taken)
    for number in range(2, 250):
        if (address := f"{PREFIX}.{number}") not in used:
            return address
    raise LabError("no address is left for another test host; remove some with: gpurack lab down")


def namespace(name: str) -> str:
    """Return the name of a host's network namespace."""
    return f"gpurack-{name}"


def _interface(address: str) -> str:
    """Return the name of this machine's end of a host's cable; 15 characters at most."""
    return f"{BRIDGE[:11]}-{address.rpartition('.')[2]}"


def up() -> None:
    """Make the bridge and the way out, if they are not there."""
    if not Path(f"/sys/class/net/{BRIDGE}").exists():
        run(["ip", "link", "add", BRIDGE, "type", "bridge", "forward_delay", "0"])
        run(["ip", "address", "add", f"{PREFIX}.1/24", "dev", BRIDGE])
        run(["ip", "link", "set", BRIDGE, "up"])
        if FORWARDING.read_text().strip() == "0":
            FORWARDING.write_text("1")
            _forwarding_was_off().touch()
        # Bridged packets are the hosts' own affair, not this machine's firewall's.
        with contextlib.suppress(OSError):
            Path("/proc/sys/net/bridge/bridge-nf-call-iptables").write_text("0")
    subprocess.run(["nft", "-f", "-"], input=_RULES, text=True, check=True)


def connect(name: str, address: str) -> None:
    """Give a host its namespace, interface, address and default route."""
    disconnect(name, address)
    inside = ["ip", "-n", namespace(name)]
    run(["ip", "netns", "add", namespace(name)])
    # The hardware address follows from the address: whoever remembers the one knows the other, also when a new host
    # has the address of one just removed.
    hardware = "02:00:" + ":".join(f"{int(number):02x}" for number in address.split("."))
    pair = ["ip", "link", "add", _interface(address), "type", "veth", "peer", "name", "host0"]
    run([*pair, "address", hardware, "netns", namespace(name)])
    run(["ip", "link", "set", _interface(address), "master", BRIDGE, "up"])
    run([*inside, "address", "add", f"{address}/24", "dev", "host0"])
    run([*inside, "link", "set", "lo", "up"])
    run([*inside, "link", "set", "host0", "up"])
    run([*inside, "route", "add", "default", "via", f"{PREFIX}.1"])


def disconnect(name: str, address: str) -> None:
    """Remove what :func:`connect` made, as far as it is there."""
    for command in (
        ["ip", "link", "delete", _interface(address)],
        ["ip", "netns", "delete", namespace(name)],
    ):
        subprocess.run(command, stderr=subprocess.DEVNULL, check=False)


def isolate(name: str) -> None:
    """Take a host's way out: it reaches the lab's network, where this machine is, and nothing else."""
    run(["ip", "-n", namespace(name), "route", "delete", "default"])


def down() -> None:
    """Remove the bridge and the way out."""
    subprocess.run(["ip", "link", "delete", BRIDGE], stderr=subprocess.DEVNULL, check=False)
    subprocess.run(["nft", "delete", "table", "ip", TABLE], stderr=subprocess.DEVNULL, check=False)
    if _forwarding_was_off().exists():
        FORWARDING.write_text("0")
        _forwarding_was_off().unlink()


def _forwarding_was_off() -> Path:
    return HOSTS / "forwarding-was-off"
