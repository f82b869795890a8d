"""Settings, headers, reboots, files and fact parsers of the nvidia_driver role."""

from __future__ import annotations

from datetime import time
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from gpurack import notices
from gpurack.facts.driver import (
    Available,
    ContainersWithGpus,
    Dkms,
    DkmsBuild,
    GpuContainers,
    Held,
    KernelState,
    RunningModule,
)
from gpurack.gpu.driver import choose
from gpurack.gpu.driver_version import DriverError
from gpurack.gpu.kernels import Headers, Kernels, headers_for, release_key
from gpurack.gpu.models import Architecture, Card
from gpurack.gpu.reboot import ModuleState, reasons, within
from gpurack.hints import fault_in
from gpurack.rendering import render
from roles.nvidia_driver.settings import NvidiaDriverSettings

CARDS = [Card(address="0000:01:00.0", device_id="2684", name="RTX", architecture=Architecture.ADA)]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"branch": "470"}, "branch 470 is older than the least driver, 535.86"),
        ({"version": "535.54.03"}, "535.54.03, older than 535.86"),
        ({"version": "latest"}, "should match pattern"),
        ({"version": "550.163.01", "branch": "580"}, "550.163.01 is not of branch 580"),
        ({"source": "nvidia", "branch": "550"}, "from branch 570 on"),
        ({"source": "debian", "kernel_module": "prebuilt"}, "modules that come built are Ubuntu's"),
        ({"source": "nvidia", "backports": True}, "backports are Debian's"),
        ({"reboot": "window"}, "belong together"),
        ({"reboot_window": {"start": "02:00", "end": "04:00"}}, "belong together"),
        ({"reboot": "window", "reboot_window": {"start": "02:00", "end": "02:00"}}, "the window is empty"),
        ({"source": "local"}, "belong together"),
        ({"source": "local", "local_directory": "/nowhere"}, "is no directory on this machine"),
        ({"repository": "developer.download.nvidia.com"}, "expected a URL"),
        ({"source": "cuda"}, "'auto', 'debian', 'ubuntu', 'nvidia' or 'local'"),
        ({"reboot_timeout": 1}, "greater than or equal to"),
    ],
)
def test_wrong_settings_are_refused_with_a_reason(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        NvidiaDriverSettings(**values)


def test_local_directory_is_read_by_its_file_names(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="no package with the kernel module"):
        NvidiaDriverSettings(source="local", local_directory=tmp_path)
    for name in ("nvidia-kernel-dkms_550.163.01-2_amd64.deb", "libcuda1_2%3a550.163.01-2_amd64.deb", "notes.txt"):
        (tmp_path / name).touch()
    settings = NvidiaDriverSettings(source="local", local_directory=tmp_path)
    assert settings.local_packages == {"nvidia-kernel-dkms": "550.163.01-2", "libcuda1": "550.163.01-2"}
    (tmp_path / "nvidia-kernel-dkms_550.163.01-2_amd64.deb").rename(
        tmp_path / "nvidia-kernel-dkms_525.147.05-1_amd64.deb"
    )
    with pytest.raises(ValidationError, match=r"nvidia-kernel-dkms is version 525\.147\.05-1, older than 535\.86"):
        NvidiaDriverSettings(source="local", local_directory=tmp_path)


CLOUD = "6.12.118+deb13-cloud-amd64"


@pytest.mark.parametrize(
    ("kernels", "distribution", "wanted"),
    [
        (
            Kernels(running=CLOUD, images=(CLOUD,), metas=("linux-image-cloud-amd64",)),
            "debian",
            Headers(("linux-headers-cloud-amd64",), f"linux-headers-{CLOUD}", "linux-image-cloud-amd64"),
        ),
        (
            Kernels(running=CLOUD, images=(CLOUD,), headers=(CLOUD,), metas=("linux-image-cloud-amd64",)),
            "debian",
            Headers(("linux-headers-cloud-amd64",), None, "linux-image-cloud-amd64"),
        ),
        (
            Kernels(running="6.8.0-64-generic", metas=("linux-image-generic", "linux-image-generic-hwe-24.04")),
            "ubuntu",
            Headers(
                ("linux-headers-generic", "linux-headers-generic-hwe-24.04"),
                "linux-headers-6.8.0-64-generic",
                "linux-image-generic",
            ),
        ),
        (
            Kernels(running="6.8.0-1024-aws"),
            "ubuntu",
            Headers(
                ("linux-headers-aws",),
                "linux-headers-6.8.0-1024-aws",
                "linux-image-aws",
                ("no package follows the newest kernel: linux-headers-aws does from now on",),
            ),
        ),
    ],
)
def test_headers_follow_the_kernel(kernels: Kernels, distribution: str, wanted: Headers) -> None:
    assert headers_for(kernels, distribution) == wanted


def test_container_builds_for_the_headers_it_has() -> None:
    kernels = Kernels(container=True, running="6.18.44-other", images=("6.1.0-56-amd64",), headers=("6.1.0-56-amd64",))
    headers = headers_for(kernels, "debian")
    assert headers.packages == ("linux-headers-amd64",)
    assert headers.exact is None and "another host's" in headers.notes[0]
    assert kernels.targets == ("6.1.0-56-amd64",)


def test_foreign_kernel_is_refused_with_the_cure() -> None:
    with pytest.raises(DriverError, match=r"6\.6\.0-custom is not one of Debian's.*apt-get install linux-image-amd64"):
        headers_for(Kernels(running="6.6.0-custom"), "debian")
    assert headers_for(Kernels(running="6.6.0-custom", headers=("6.6.0-custom",)), "debian").exact is None


def test_running_and_newest_kernel_need_the_module() -> None:
    kernels = Kernels(running="6.12.9-amd64", images=("6.12.9-amd64", "6.12.118-amd64", "6.1.200-amd64"))
    assert kernels.newest == "6.12.118-amd64"
    assert kernels.targets == ("6.12.9-amd64", "6.12.118-amd64")


@given(st.lists(st.text(max_size=30), max_size=5))
def test_any_release_names_can_be_ordered(releases: list[str]) -> None:
    ordered = sorted(releases, key=release_key)
    assert all(release_key(a) <= release_key(b) for a, b in pairwise(ordered))


def test_reasons_for_a_reboot() -> None:
    fine = ModuleState(loaded="550.163.01")
    assert reasons(fine, "550.163.01", "6.12.118", "6.12.118") == []
    assert reasons(fine, "550.163.01", "6.12.118", None) == []
    assert reasons(fine, "580.95.05", "6.12.118", "6.12.118") == [
        "the kernel holds module 550.163.01, and 580.95.05 is installed"
    ]
    assert reasons(fine, "550.163.01", "6.12.9", "6.12.118") == ["kernel 6.12.9 runs, and 6.12.118 is installed"]
    assert reasons(ModuleState(nouveau=True), "550.163.01", "6", "6") == ["nouveau is loaded and holds the cards"]


@pytest.mark.parametrize(
    ("clock", "start", "end", "inside"),
    [
        ("02:00", "02:00", "04:00", True),
        ("03:59", "02:00", "04:00", True),
        ("04:00", "02:00", "04:00", False),
        ("12:00", "02:00", "04:00", False),
        ("23:30", "22:00", "04:00", True),
        ("03:00", "22:00", "04:00", True),
        ("12:00", "22:00", "04:00", False),
    ],
)
def test_window(clock: str, start: str, end: str, inside: bool) -> None:
    assert within(*(time.fromisoformat(text) for text in (clock, start, end))) is inside


def test_kernel_fact() -> None:
    output = [
        *("architecture amd64", "container none", f"running {CLOUD}", f"image {CLOUD}", f"headers {CLOUD}"),
        *("meta linux-image-cloud-amd64", f"meta linux-image-{CLOUD}", "meta linux-image-6.12-amd64-dbg", ""),
    ]
    assert KernelState().process(output) == Kernels(
        "amd64", False, CLOUD, (CLOUD,), (CLOUD,), ("linux-image-cloud-amd64",)
    )
    assert KernelState().process(["container systemd-nspawn"]).container


def test_dkms_fact_reads_both_of_its_formats() -> None:
    found = Dkms().process(
        [
            "nvidia-current/550.163.01, 6.12.118+deb13-amd64, x86_64: installed (WARNING! Diff between ...)",
            "nvidia-current-open/550.163.01: added",
            "nvidia, 535.183.01, 5.15.0-91-generic, x86_64: built",
            "nvidia-fs/2.18.3, 6.12.118+deb13-amd64, x86_64: installed",
            "zfs/2.3.2, 6.12.118+deb13-amd64, x86_64: installed",
            "/usr/src/nvidia-current-550.163.01/dkms.conf",
            "/usr/src/nvidia-fs-2.18.3/dkms.conf",
        ]
    )
    assert found.builds == (
        DkmsBuild("nvidia-current", "550.163.01", "6.12.118+deb13-amd64", "installed"),
        DkmsBuild("nvidia-current-open", "550.163.01", "", "added"),
        DkmsBuild("nvidia", "535.183.01", "5.15.0-91-generic", "built"),
    )
    assert found.source_of("550.163.01") == "nvidia-current" and found.source_of("535.183.01") is None
    assert found.installed("550.163.01", "6.12.118+deb13-amd64")
    assert not found.installed("535.183.01", "5.15.0-91-generic")


def test_available_and_held_facts() -> None:
    lines = [
        "libcuda1 | 535.309.01-0+deb12u1 | http://deb.debian.org/debian-security bookworm-security/non-free amd64",
        "  libcuda1 | 535.261.03-1 | http://deb.debian.org/debian bookworm/non-free amd64 Packages",
        "  libcuda1 | 535.261.03-1 | http://mirror.example.org bookworm/non-free amd64 Packages",
        "N: Unable to locate package",
    ]
    assert Available().process(lines) == {"libcuda1": ("535.309.01-0+deb12u1", "535.261.03-1")}
    assert Held().process(["libcuda1:amd64", "nvidia-smi", ""]) == {"libcuda1", "nvidia-smi"}


def test_running_module_fact() -> None:
    output = ["boot_id abc", "clock 03:15", "loaded 550.163.01", "secure_boot yes", "mok /var/lib/dkms/mok.pub"]
    found = RunningModule().process(output)
    assert found == ModuleState(
        "550.163.01", secure_boot=True, mok="/var/lib/dkms/mok.pub", boot_id="abc", clock=time(3, 15)
    )
    assert found.locked_out
    assert not RunningModule().process([*output, "enrolled yes"]).locked_out
    assert RunningModule().process([]) == ModuleState()


def test_container_fact() -> None:
    assert ContainersWithGpus().process(["running aa", "stopped bb", "running cc", ""]) == GpuContainers(
        ("aa", "cc"), ("bb",)
    )


@given(st.lists(st.text(max_size=60), max_size=8))
def test_no_output_makes_a_parser_crash(lines: list[str]) -> None:
    for fact in (Dkms(), Available(), Held(), KernelState(), ContainersWithGpus()):
        fact.process(lines)


def test_nvidias_repository_is_signed_by_its_own_key() -> None:
    settings = NvidiaDriverSettings(source="nvidia", repository="https://mirror.example.org/cuda/")
    choice = choose(settings, "debian", "trixie", CARDS)
    assert choice.apt_files == ("sources.list.d/gpurack-nvidia.sources",)
    text = render(f"templates/nvidia_driver/{choice.apt_files[0]}.j2", settings=settings, choice=choice)
    assert "URIs: https://mirror.example.org/cuda/debian13/x86_64\nSuites: /\n" in text
    assert "Signed-By: /etc/apt/keyrings/gpurack-nvidia.gpg" in text


def test_backports_are_a_source_of_their_own() -> None:
    settings = NvidiaDriverSettings(backports=True)
    choice = choose(settings, "debian", "trixie", CARDS)
    text = render(f"templates/nvidia_driver/{choice.apt_files[0]}.j2", settings=settings, codename="trixie")
    assert "Suites: trixie-backports\nComponents: main contrib non-free non-free-firmware" in text


def test_pin_names_one_version() -> None:
    pin = render("templates/nvidia_driver/preferences.d/gpurack-nvidia-driver.j2", version="550.163.01")
    assert "Pin: version 550.163.01*\nPin-Priority: 1001" in pin


def test_failed_build_is_a_known_fault() -> None:
    fault = fault_in("Error! Bad return status for module build on kernel: 6.12.118+deb13-amd64 (x86_64)")
    assert fault and "does not compile with this kernel" in fault.cause


def test_what_is_left_to_do_is_said_once() -> None:
    host: Any = SimpleNamespace(name="gpu1", print_prefix="[gpu1] ")
    for _ in range(2):
        notices.leave(host, "REBOOT NEEDED")
    assert notices.take() == ["gpu1: REBOOT NEEDED"]
    assert notices.take() == []
