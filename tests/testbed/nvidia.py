"""NVIDIA's doubles on test hosts: an apt repository of the container toolkit, a driver, and nvidia-smi."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

from gpurack.gpu.driver_packages import NVIDIA_REPOSITORIES
from gpurack.lab import Machine

DOUBLES = Path(__file__).parents[1] / "doubles"
TOOLKIT = DOUBLES / "nvidia-container-toolkit"
NEW, OLD = "1.18.1-1", "1.17.8-1"
"""Versions of the toolkit in the repository: with its own CDI units, and from before them."""

REFRESH = """\
[Unit]
Description=Refresh NVIDIA CDI specification file (double)
ConditionPathExists=/usr/bin/nvidia-ctk

[Service]
Type=oneshot
ExecStart=/usr/bin/nvidia-ctk cdi generate --output=/var/run/cdi/nvidia.yaml

[Install]
WantedBy=multi-user.target
"""


def control(package: str, version: str, depends: str = "") -> str:
    """Return the control file of a package."""
    lines = [
        f"Package: {package}",
        f"Version: {version}",
        "Architecture: amd64",
        "Section: utils",
        "Priority: optional",
    ]
    lines += [f"Depends: {depends}"] if depends else []
    lines += ["Maintainer: gpurack tests <root@localhost>", "Description: test double, no software of NVIDIA"]
    return "\n".join(lines) + "\n"


def build_deb(
    folder: Path, package: str, version: str, files: dict[str, str], depends: str = "", post: str = ""
) -> Path:
    """Build a package of files (path on the host -> text, those below bin executable) and return it."""
    tree = folder / f"{package}_{version}"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN/control").write_text(control(package, version, depends))
    if post:
        (tree / "DEBIAN/postinst").write_text(f"#!/bin/sh\nset -e\n{post}\n")
        (tree / "DEBIAN/postinst").chmod(0o755)
    for path, text in files.items():
        target = tree / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        target.chmod(0o755 if "/bin/" in path else 0o644)
    deb = folder / f"{package}_{version}_amd64.deb"
    subprocess.run(
        ["dpkg-deb", "--root-owner-group", "-Zgzip", "--build", str(tree), str(deb)], check=True, capture_output=True
    )
    shutil.rmtree(tree)
    return deb


def toolkit_debs(folder: Path, version: str) -> list[Path]:
    """Build the toolkit's four packages and return them."""
    folder.mkdir(parents=True, exist_ok=True)
    base = {
        "/usr/bin/nvidia-ctk": (TOOLKIT / "nvidia-ctk").read_text().replace("@VERSION@", version.partition("-")[0]),
        "/usr/bin/nvidia-container-runtime": '#!/bin/sh\nexec runc "$@"\n',
        "/usr/bin/nvidia-cdi-hook": "#!/bin/sh\nexit 0\n",
    }
    post = "nvidia-ctk --quiet config --config-file=/etc/nvidia-container-runtime/config.toml --in-place"
    if version != OLD:
        base["/lib/systemd/system/nvidia-cdi-refresh.service"] = REFRESH
        post += "\nsystemctl daemon-reload\nsystemctl --quiet enable nvidia-cdi-refresh.service"
        post += "\nsystemctl start nvidia-cdi-refresh.service || true"
    hook = {"/usr/bin/nvidia-container-runtime-hook": "#!/bin/sh\ncat >/dev/null\nexit 0\n"}
    cli = {"/usr/bin/nvidia-container-cli": "#!/bin/sh\nexit 0\n"}
    tied = f"libnvidia-container1 (= {version})"
    exact = f"nvidia-container-toolkit-base (= {version}), libnvidia-container-tools (= {version})"
    return [
        build_deb(folder, "libnvidia-container1", version, {"/usr/share/nvidia-double/lib": "\n"}),
        build_deb(folder, "libnvidia-container-tools", version, cli, tied),
        build_deb(folder, "nvidia-container-toolkit-base", version, base, post=post),
        build_deb(folder, "nvidia-container-toolkit", version, hook, exact),
    ]


def cuda_repository(folder: Path, release: str, toolkit: str) -> str:
    """Lay out NVIDIA's CUDA repository of a release with one toolkit; return the SHA-256 of its keyring package."""
    flat = folder / NVIDIA_REPOSITORIES[release] / "x86_64"
    flat.mkdir(parents=True)
    nvcc = f"#!/bin/sh\necho 'Cuda compilation tools, release {toolkit}, V{toolkit}.131 (double)'\n"
    package = f"cuda-toolkit-{toolkit.replace('.', '-')}"
    deb = build_deb(flat, package, f"{toolkit}.1-1", {f"/usr/local/cuda-{toolkit}/bin/nvcc": nvcc})
    # What must not be taken from there: a driver newer than the host's own.
    other = build_deb(flat, "nvidia-smi", "999.99.99-1", {"/usr/share/nvidia-double/other": "\n"})
    repository(flat.parents[1], [deb, other], label="NVIDIA CUDA")
    tree = flat / "keyring"
    target = tree / "usr/share/keyrings/cuda-archive-keyring.gpg"
    target.parent.mkdir(parents=True)
    key = subprocess.run(["gpg", "--dearmor"], input=(folder / "gpgkey").read_bytes(), check=True, capture_output=True)
    target.write_bytes(key.stdout)
    (tree / "DEBIAN").mkdir()
    (tree / "DEBIAN/control").write_text(control("cuda-keyring", "1.1-1"))
    keyring = flat / "cuda-keyring_1.1-1_all.deb"
    subprocess.run(["dpkg-deb", "-Zgzip", "--build", str(tree), str(keyring)], check=True, capture_output=True)
    return hashlib.sha256(keyring.read_bytes()).hexdigest()


def repository(folder: Path, debs: list[Path], label: str = "gpurack tests") -> str:
    """Sign a flat apt repository of the packages in their folder; put the key beside it, return the key's SHA-256."""
    home = folder / ".gnupg"
    home.mkdir(mode=0o700)
    env = {**os.environ, "GNUPGHOME": str(home)}
    gpg = ["gpg", "--batch", "--quiet", "--yes", "--passphrase", "", "--pinentry-mode", "loopback"]

    def run(*arguments: str) -> str:
        return subprocess.run([*gpg, *arguments], env=env, check=True, capture_output=True, text=True).stdout

    run("--quick-generate-key", "gpurack tests <root@localhost>", "ed25519", "sign", "never")
    flat = debs[0].parent
    packages = "\n".join(_stanza(deb) for deb in debs)
    (flat / "Packages").write_text(packages)
    digest = hashlib.sha256(packages.encode()).hexdigest()
    (flat / "Release").write_text(
        f"Origin: gpurack tests\nLabel: {label}\nDate: Thu, 01 Jan 2026 00:00:00 UTC\n"
        f"SHA256:\n {digest} {len(packages.encode())} Packages\n"
    )
    run("--clearsign", "--output", str(flat / "InRelease"), str(flat / "Release"))
    key = run("--armor", "--export")
    (folder / "gpgkey").write_text(key)
    subprocess.run(["gpgconf", "--kill", "all"], env=env, check=False)
    shutil.rmtree(home, ignore_errors=True)
    return hashlib.sha256(key.encode()).hexdigest()


def _stanza(deb: Path) -> str:
    fields = subprocess.run(["dpkg-deb", "--field", str(deb)], check=True, capture_output=True, text=True).stdout
    data = deb.read_bytes()
    return f"{fields}Filename: ./{deb.name}\nSize: {len(data)}\nSHA256: {hashlib.sha256(data).hexdigest()}\n"


@contextmanager
def served(folder: Path, machine: Machine) -> Iterator[str]:
    """Serve a folder to a test host; yield its URL as the host sees it."""
    address = machine.ssh("ip route show default").stdout.split()[2]
    handler = partial(_Quiet, directory=str(folder))
    with ThreadingHTTPServer((address, 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://{address}:{server.server_port}"
        server.shutdown()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Keep requests out of the tests' output."""


def put(machine: Machine, path: str, text: str, mode: str = "644") -> None:
    """Write a file on a host."""
    data = base64.b64encode(text.encode()).decode()
    machine.ssh(f"mkdir -p {path.rpartition('/')[0]} && echo {data} | base64 -d >{path} && chmod {mode} {path}")


def driver(machine: Machine, version: str) -> None:
    """Let a host have this version of the driver, as far as the doubles look at it."""
    machine.ssh("rm -f /usr/lib/x86_64-linux-gnu/libcuda.so.*; ! command -v nvidia-smi >/dev/null || nvidia-smi -L")
    put(machine, f"/usr/lib/x86_64-linux-gnu/libcuda.so.{version}", "double\n")
    put(machine, "/var/lib/nvidia-double/driver", f"{version}\n")


def nvidia_smi(machine: Machine, *gpus: dict[str, Any]) -> None:
    """Put the nvidia-smi double on a host, and its state."""
    machine.ssh(
        "command -v python3 >/dev/null || { apt-get -q update && apt-get -qy --no-install-recommends install "
        "python3; } >/dev/null 2>&1",
        timeout=300,
    )
    put(machine, "/usr/bin/nvidia-smi", (DOUBLES / "nvidia-smi/nvidia-smi").read_text(), "755")
    set_state(machine, gpus=list(gpus))


def set_state(machine: Machine, **state: Any) -> None:
    """Write the nvidia-smi double's state: ``gpus``, or an ``error`` of the driver."""
    put(machine, "/var/lib/nvidia-double/state.json", json.dumps(state))


def h100(index: int = 0, **change: Any) -> dict[str, Any]:
    """Return an H100 of the nvidia-smi double."""
    return {
        "index": index,
        "uuid": f"GPU-0000000{index}-1111-2222-3333-444455556666",
        "name": "NVIDIA H100 80GB HBM3",
        "device_id": "0x233010DE",
        "mig": "Disabled",
        **change,
    }
