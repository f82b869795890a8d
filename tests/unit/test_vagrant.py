"""What the Vagrant test prepares before the first virtual machine boots, and the virtual machines' identity."""

from __future__ import annotations

import io
import json
import re
import struct
import tarfile
from pathlib import Path

import pytest
from click.testing import CliRunner

from gpurack.lab import timeserver, vagrant, vmimage
from gpurack.lab.machine import LabError
from gpurack.lab.qemu import QemuMachine, accelerator

ROOT = Path(__file__).parents[2]


@pytest.fixture
def image(tmp_path: Path) -> vmimage.Image:
    folder = tmp_path / "vm-trixie-0"
    folder.mkdir()
    for name in ("disk.qcow2", "vmlinuz", "initrd.img", "key"):
        (folder / name).write_text(f"the {name}")
    return vmimage.Image.at("trixie", folder)


def test_box_is_one_of_the_libvirt_provider(image: vmimage.Image, tmp_path: Path) -> None:
    with tarfile.open(vagrant.build_box(image, tmp_path)) as box:
        content = {member.name: box.extractfile(member).read().decode() for member in box}
        assert box.getmember("vagrant_private_key").mode == 0o600
    assert set(content) == {"metadata.json", "Vagrantfile", "vagrant_private_key", "box.img"}
    assert json.loads(content["metadata.json"]) == {
        "provider": "libvirt",
        "format": "qcow2",
        "virtual_size": vmimage.SIZE_GIB,
    }
    assert content["vagrant_private_key"] == "the key"
    assert content["box.img"] == "the disk.qcow2"
    assert 'config.ssh.username = "admin"' in content["Vagrantfile"]


def test_environment_keeps_the_users_vagrant_out(
    image: vmimage.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VAGRANT_VAGRANTFILE", "another")
    monkeypatch.setenv("LIBVIRT_DEFAULT_URI", "qemu+ssh://elsewhere/system")
    monkeypatch.setenv("GPURACK_HOSTS", "3")
    monkeypatch.setenv("GPURACK_LAB_ACCEL", "tcg")
    env = vagrant.environment(image, tmp_path)
    assert "VAGRANT_VAGRANTFILE" not in env
    assert "LIBVIRT_DEFAULT_URI" not in env
    assert env["GPURACK_HOSTS"] == "1"
    assert env["GPURACK_RELEASE"] == "trixie"
    assert env["GPURACK_VAGRANT_DRIVER"] == "qemu"
    assert env["GPURACK_KERNEL"] == str(image.kernel)
    for name in ("VAGRANT_HOME", "VAGRANT_DOTFILE_PATH", "GPURACK_LAB_STATE"):
        assert Path(env[name]).is_relative_to(tmp_path)


def test_every_variable_of_the_vagrantfile_is_documented() -> None:
    used = set(re.findall(r"GPURACK_[A-Z_]+", (ROOT / "Vagrantfile").read_text()))
    documented = (ROOT / "docs/vagrant.md").read_text()
    assert {name for name in used if f"`{name}`" not in documented} == set()


def test_make_installs_every_package() -> None:
    makefile = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    installed = {
        word for line in re.findall(r"^(?:LAB|VAGRANT)_PACKAGES := (.*)$", makefile, re.M) for word in line.split()
    }
    assert set(vagrant.VAGRANT_PACKAGES) <= installed


def test_without_root_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    result = CliRunner().invoke(vagrant.vagrant_test, [])
    assert result.exit_code == 1
    assert "not root" in result.output
    assert "sudo" in result.output


def test_missing_programs_are_named_with_their_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    there = set(vagrant.PROGRAMS) - {"vagrant", "dnsmasq"}
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr("shutil.which", lambda program, **_: program if program in there else None)
    assert vagrant.missing() == "missing: dnsmasq-base, vagrant; install with: apt-get install dnsmasq-base vagrant"


def test_unknown_release_is_refused() -> None:
    result = CliRunner().invoke(vagrant.vagrant_test, ["--release", "sarge"])
    assert result.exit_code == 2
    assert "'bookworm', 'trixie'" in result.output


def test_summary_adds_the_steps_up() -> None:
    steps = vagrant.Steps()
    steps.taken = [("box", 2.4), ("vagrant up", 60.0)]
    assert steps.summary().splitlines() == ["     2 s  box", "    60 s  vagrant up", "    62 s  whole test"]


@pytest.mark.parametrize("chosen", ["kvm", "tcg"])
def test_accelerator_is_what_the_variable_says(chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPURACK_LAB_ACCEL", chosen)
    assert accelerator() == chosen


def test_unknown_accelerator_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPURACK_LAB_ACCEL", "hvf")
    with pytest.raises(LabError, match="GPURACK_LAB_ACCEL=hvf"):
        accelerator()


def test_nested_virtualisation_is_not_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GPURACK_LAB_ACCEL", raising=False)
    monkeypatch.setattr("os.access", lambda *_: True)
    monkeypatch.setattr(Path, "read_text", lambda _: "flags\t\t: fpu vme hypervisor lahf_lm\n")
    assert accelerator() == "tcg"
    monkeypatch.setattr(Path, "read_text", lambda _: "flags\t\t: fpu vme lahf_lm\n")
    assert accelerator() == "kvm"


def test_time_server_answers_a_client_with_this_machines_time() -> None:
    request = struct.pack("!BBbb11I", 0x23, 0, 6, 0, *[0] * 9, 0xAABBCCDD, 0x11223344)  # version 4, a client
    reply = timeserver.answer(request, received=0.25, now=0.5)
    assert reply is not None
    first, stratum, _, _, *words = struct.unpack("!BBbb11I", reply)
    assert (first >> 6, first >> 3 & 7, first & 7, stratum) == (0, 4, 4, 1)
    assert words[5:7] == [0xAABBCCDD, 0x11223344]
    assert words[7:9] == [2_208_988_800, 0x40000000]
    assert words[9:] == [2_208_988_800, 0x80000000]


@pytest.mark.parametrize("packet", [b"", b"\x23" * 47, b"\x24" + bytes(47)])
def test_time_server_ignores_what_is_no_clients_request(packet: bytes) -> None:
    assert timeserver.answer(packet, 0.0, 0.0) is None


def test_identity_belongs_to_root_but_for_the_administrators_keys() -> None:
    archive = vmimage.identity(
        {"/etc/ssh/ssh_host_ed25519_key": ("secret", 0o600), vmimage.AUTHORIZED_KEYS: ("public", 0o600)}
    )
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        found = {member.name: (member.uname, member.mode, tar.extractfile(member).read()) for member in tar}
    assert found == {
        "etc/ssh/ssh_host_ed25519_key": ("root", 0o600, b"secret"),
        "home/admin/.ssh/authorized_keys": ("admin", 0o600, b"public"),
    }


def test_virtual_machine_is_found_again_from_its_state(image: vmimage.Image) -> None:
    machine = QemuMachine.place("vm1", "trixie", taken=[], owner=None, disk_mib=None)
    machine.image = image
    again = QemuMachine.from_state(json.loads(json.dumps(machine.state())))
    assert (again.name, again.address, again.port, again.image) == ("vm1", "127.0.0.1", machine.port, image)
    assert not again.running


def test_virtual_machine_has_one_disk_size() -> None:
    with pytest.raises(LabError, match="12 GiB"):
        QemuMachine.place("vm1", "trixie", taken=[], owner=None, disk_mib=500)
