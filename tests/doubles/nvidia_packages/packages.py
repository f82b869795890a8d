"""Makes small packages with the names of the NVIDIA driver's; see README.md."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

MODULE = """\
#include <linux/fs.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
{variable}
MODULE_DESCRIPTION("double of NVIDIA's module, see tests/doubles/nvidia_packages");
MODULE_LICENSE("GPL");
MODULE_VERSION("{version}");
static const struct file_operations operations = {{ .owner = THIS_MODULE }};
static struct miscdevice device = {{ .minor = MISC_DYNAMIC_MINOR, .name = "{device}", .fops = &operations }};
module_misc_device(device);
"""

DKMS = """\
PACKAGE_NAME="nvidia-current"
PACKAGE_VERSION="{version}"
AUTOINSTALL=yes
MAKE[0]="make -C $kernel_source_dir M=$dkms_tree/$PACKAGE_NAME/$PACKAGE_VERSION/build modules"
CLEAN="true"
BUILT_MODULE_NAME[0]="nvidia"
DEST_MODULE_LOCATION[0]="/updates/dkms"
BUILT_MODULE_NAME[1]="nvidia-uvm"
DEST_MODULE_LOCATION[1]="/updates/dkms"
"""

POSTINST = """\
#!/bin/sh
set -e
[ "$1" != configure ] || /usr/lib/dkms/common.postinst nvidia-current {version} /usr/share/nvidia-current-dkms "" "$2"
"""

PRERM = """\
#!/bin/sh
set -e
dkms remove nvidia-current/{version} --all || true
"""

DAEMON = """\
[Unit]
Description=Double of NVIDIA's persistence daemon
[Service]
ExecStart=/bin/sleep infinity
[Install]
WantedBy=multi-user.target
"""


def make(folder: Path, version: str, *, broken: bool = False) -> Path:
    """Make the packages of one version in a folder.

    Args:
        folder: where the .deb files go; it is made if need be.
        version: NVIDIA's version, such as ``550.163.01``.
        broken: the module does not compile.
    """
    folder.mkdir(parents=True, exist_ok=True)
    source = f"usr/src/nvidia-current-{version}"
    variable = "int broken = missing_function(1);" if broken else ""
    nvidia, uvm = (
        MODULE.format(version=version, variable=variable, device=device) for device in ("nvidiactl", "nvidia-uvm")
    )
    _package(
        folder,
        "nvidia-kernel-dkms",
        version,
        {
            f"{source}/dkms.conf": DKMS.format(version=version),
            f"{source}/Makefile": "obj-m := nvidia.o nvidia-uvm.o\n",
            f"{source}/nvidia.c": nvidia,
            f"{source}/nvidia-uvm.c": uvm,
        },
        depends="dkms",
        scripts={"postinst": POSTINST.format(version=version), "prerm": PRERM.format(version=version)},
    )
    for package, library in (("libnvidia-ml1", "libnvidia-ml"), ("libcuda1", "libcuda")):
        _library(folder, package, library, version)
    smi = f"#!/bin/sh\nread -r loaded </sys/module/nvidia/version && echo {version} $loaded\n"
    _package(folder, "nvidia-smi", version, {"usr/bin/nvidia-smi": smi}, depends=f"libnvidia-ml1 (= {version}-1)")
    unit = {"usr/lib/systemd/system/nvidia-persistenced.service": DAEMON}
    _package(folder, "nvidia-persistenced", version, unit)
    return folder


def _library(folder: Path, package: str, library: str, version: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        place = Path(name) / "usr/lib/x86_64-linux-gnu"
        place.mkdir(parents=True)
        file = place / f"{library}.so.{version}"
        options = ["-shared", f"-Wl,-soname,{library}.so.1", "-x", "c", "/dev/null", "-o", str(file)]
        subprocess.run(["gcc", *options], check=True)
        (place / f"{library}.so.1").symlink_to(file.name)
        _build(folder, Path(name), package, version, "", {"triggers": "activate-noawait ldconfig\n"})


def _package(
    folder: Path,
    package: str,
    version: str,
    files: dict[str, str],
    *,
    depends: str = "",
    scripts: dict[str, str] | None = None,
) -> None:
    with tempfile.TemporaryDirectory() as name:
        for path, text in files.items():
            file = Path(name) / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
            file.chmod(0o755 if path.startswith("usr/bin/") else 0o644)
        _build(folder, Path(name), package, version, depends, scripts or {})


def _build(folder: Path, tree: Path, package: str, version: str, depends: str, scripts: dict[str, str]) -> None:
    control = tree / "DEBIAN"
    control.mkdir()
    tree.chmod(0o755)
    (control / "control").write_text(
        f"Package: {package}\nVersion: {version}-1\nArchitecture: amd64\nMaintainer: gpurack's tests <root@localhost>\n"
        + (f"Depends: {depends}\n" if depends else "")
        + "Description: double of a package of the NVIDIA driver\n"
    )
    for script, text in scripts.items():
        (control / script).write_text(text)
        (control / script).chmod(0o644 if script == "triggers" else 0o755)
    target = folder / f"{package}_{version}-1_amd64.deb"
    command = ["dpkg-deb", "--root-owner-group", "-Znone", "--build", str(tree), str(target)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
