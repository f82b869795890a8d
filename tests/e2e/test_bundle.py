"""A host whose only route is to the machine that manages it converges from a bundle; what was changed is named.

The bundle is made by the real command: packages by apt from the mirrors this machine has, the image from the archive of
Ollama's double, gpurack's own wheels by pip and uv.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gpurack.lab import network, tinymodel
from gpurack.lab.anythingllm_double import archive as anythingllm_archive
from gpurack.lab.ollama_double import archive
from gpurack.lab.rootfs import CACHE
from tests.testbed.anythingllm import ask, base_settings
from tests.testbed.site import ROOT

pytestmark = pytest.mark.host

GPURACK = str(Path(sys.executable).with_name("gpurack"))
ROLES = ("base", "users", "sshd", "docker", "ollama", "ollama_models", "anythingllm")


@pytest.fixture(scope="module", params=["trixie"])
def release(request: pytest.FixtureRequest) -> str:
    """One release: what differs on the other is which packages are gathered, and that is a unit test's."""
    return str(request.param)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serve a model from a double of Ollama's registry, on this machine's loopback; return its name."""
    folder, program = tmp_path_factory.mktemp("registry"), ROOT / "tests/doubles/registry/registry.py"
    spec = importlib.util.spec_from_file_location("registry_double", program)
    assert spec and spec.loader
    double = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(double)
    weights = tinymodel.write(tmp_path_factory.mktemp("weights") / "tiny").read_bytes()
    double.publish(folder, "library/tiny:1b", weights)
    command = [sys.executable, str(program), str(folder), "127.0.0.1", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    yield f"127.0.0.1:{process.stdout.readline().split()[1]}/library/tiny:1b"
    process.terminate()
    process.wait()


@pytest.fixture(scope="module")
def site(machine: Any, site_for: Any, model: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a site of a host without a way out, its settings those of a small site."""
    network.isolate(machine.name)
    look = "timeout 3 getent hosts deb.debian.org || timeout 3 curl -s http://192.0.2.1/ || echo cut off"
    assert machine.ssh(look).stdout.strip() == "cut off"
    key = machine.key.with_suffix(".pub").read_text().strip()
    return site_for(
        machine,
        {
            "base": {"ntp_pools": [], "ntp_servers": ["10.199.0.1"]},
            "users": {"administrators": [{"name": machine.user, "ssh_keys": [key], "sudo": "nopasswd"}]},
            "sshd": {},
            "docker": {},
            "ollama": {"accelerator": "cpu", "health_interval": "PT1S", "ready_timeout": "PT40S"},
            "ollama_models": {"models": {model: {"preload": True}}, "disk_reserve_gib": 0},
            "anythingllm": {
                **base_settings(tmp_path_factory.mktemp("secrets")),
                "model": model,
                "workspaces": {"legal": {}},
            },
            "images": {"archives": {"ollama": str(archive(engine=True)), "anythingllm": str(anythingllm_archive())}},
        },
    )


def create(site: Any, bundle: Path, release: str, *more: str) -> list[str]:
    """Return the command that makes a bundle for the site, with packages kept between runs of the tests."""
    kept = ["--release", release, "--cache", str(CACHE / "bundle")]
    return [GPURACK, "bundle", "create", str(site.inventory(*ROLES)), "-o", str(bundle), *kept, *more]


def verify(bundle: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """Run the command that checks a bundle."""
    command = [GPURACK, "bundle", "verify", str(bundle), *more]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def bundle(site: Any, release: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Make a bundle whose creation is killed once its packages are there, and gone on with by the same command."""
    folder = tmp_path_factory.mktemp("carried") / "site.bundle"
    first = subprocess.Popen(create(site, folder, release), cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    said = first.stdout.readline()
    first.kill()
    first.wait()
    assert "packages for trixie" in said
    unfinished = verify(folder)
    assert unfinished.returncode == 1 and "is missing" in unfinished.stderr, unfinished.stderr
    before = {path: path.stat().st_ino for path in folder.glob("apt/trixie/pool/*.deb")}
    done = subprocess.run(create(site, folder, release), cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert before and before == {path: path.stat().st_ino for path in before}, "packages were gathered again"
    site.fingerprint = done.stdout.split("with key ")[1].split(";")[0]
    yield folder
    shutil.rmtree(folder)


def test_bundle_is_as_it_was_made(site: Any, bundle: Path) -> None:
    found = verify(bundle, "--fingerprint", site.fingerprint)
    assert found.returncode == 0, found.stderr
    assert not (bundle / ".work").exists()
    assert list(bundle.glob("wheels/gpurack-*.whl")) and list(bundle.glob("wheels/pyinfra-*.whl"))


def test_another_key_is_refused(bundle: Path) -> None:
    found = verify(bundle, "--fingerprint", "0" * 40)
    assert found.returncode == 1 and "not by 0000" in found.stderr


def test_host_without_a_way_out_converges(site: Any, machine: Any, bundle: Path) -> None:
    site.settings["bundle"] = {"path": str(bundle), "fingerprint": site.fingerprint}
    site.settings["images"] = {}  # the bundle has them
    first = site.run(*ROLES)
    assert first.ok, first.output
    for role in ROLES:
        site.assert_controls(role, machine)
    again = site.run(*ROLES)
    assert again.ok and again.changed[machine.name] == 0, again.output


def test_models_of_the_bundle_are_in_the_server_s_store(machine: Any, bundle: Path, model: str) -> None:
    blobs = sorted(file.name for file in (bundle / "models/blobs").iterdir())
    check = (
        'cd /srv/ollama/models/blobs && for f in *; do echo "${f#sha256-}  $f"; done | sha256sum --check --quiet && ls'
    )
    assert machine.ssh(check).stdout.split() == blobs and len(blobs) >= 3
    assert machine.ssh("find /srv/ollama/models/manifests -type f").stdout.strip().endswith("/library/tiny/1b")
    body = json.dumps({"model": model, "prompt": "hello", "stream": False, "options": {"num_predict": 4}})
    answer = json.loads(machine.ssh(f"curl -s http://127.0.0.1:11434/api/generate -d '{body}'").stdout)
    assert answer.get("eval_count"), answer
    chat = ask(machine, "POST", "/api/v1/workspace/legal/chat", {"message": "Who answers?"})
    assert chat["textResponse"] and not chat["error"], chat


def test_apt_on_the_host_trusts_the_bundle_s_key_alone(site: Any, machine: Any) -> None:
    assert machine.ssh("apt-get update -o APT::Update::Error-Mode=any").stdout.count("file:/var/lib/gpurack") > 0
    machine.ssh(
        "cp -a /var/lib/gpurack/bundle /root/kept; sed -i s/^Version/Xersion/ /var/lib/gpurack/bundle/apt/Packages"
    )
    refused = machine.ssh("rm -rf /var/lib/apt/lists/*; apt-get update -o APT::Update::Error-Mode=any", check=False)
    assert refused.returncode != 0
    machine.ssh("rm -r /var/lib/gpurack/bundle && mv /root/kept /var/lib/gpurack/bundle")


def test_another_source_is_seen(site: Any, machine: Any) -> None:
    other = "/etc/apt/sources.list.d/docker.sources"
    key = "/usr/share/keyrings/debian-archive-keyring.gpg"
    text = f"Types: deb\\nURIs: http://deb.debian.org/debian\\nSuites: trixie\\nComponents: main\\nSigned-By: {key}\\n"
    machine.ssh(f"printf '{text}' >{other}")
    assert site.failing("base", machine) == {"BASE-05"}
    run = site.run("base")
    assert run.ok and run.changed[machine.name] == 1, run.output
    site.assert_controls("base", machine)


def test_lost_packages_are_brought_again(site: Any, machine: Any) -> None:
    machine.ssh("rm /var/lib/gpurack/bundle/apt/pool/docker.io_*.deb; echo >/var/lib/gpurack/bundle/apt/pool/stray.deb")
    run = site.run("base")
    assert run.ok and run.changed[machine.name] == 1, run.output
    assert "docker.io_" in machine.ssh("ls /var/lib/gpurack/bundle/apt/pool").stdout
    assert "stray" not in machine.ssh("ls /var/lib/gpurack/bundle/apt/pool").stdout


def test_tampering_is_found_and_named(site: Any, machine: Any, bundle: Path) -> None:
    [engine] = bundle.glob("apt/trixie/pool/docker.io_*.deb")
    image = bundle / "images/ollama.tar"
    originals = {path: path.read_bytes() for path in (engine, image)}
    with image.open("r+b") as file:
        file.seek(image.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 1]))
    engine.unlink()
    (bundle / "apt/trixie/pool/extra.deb").write_text("x")
    found = verify(bundle)
    assert found.returncode == 1
    assert found.stderr.splitlines() == [
        "images/ollama.tar: tampered with or damaged",
        f"apt/trixie/pool/{engine.name}: missing",
        "apt/trixie/pool/extra.deb: not in the manifest",
    ]
    (bundle / "apt/trixie/pool/extra.deb").unlink()
    run = site.run(*ROLES)
    assert run.returncode == 2 and f"{engine.name}: missing" in run.output, run.output
    engine.write_bytes(originals[engine])
    run = site.run(*ROLES)  # the image alone: its size is right, its content is not
    assert run.returncode == 2 and "ollama.tar does not have this SHA-256" in run.output, run.output
    assert "Connected" not in run.output
    image.write_bytes(originals[image])
    again = site.run(*ROLES)
    assert again.ok and again.changed[machine.name] == 0, again.output
