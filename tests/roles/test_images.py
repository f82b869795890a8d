"""Images from a real registry with a login: Debian's docker-registry on the host itself, serving Ollama's double."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from gpurack.images import ImageSource
from gpurack.lab.ollama_double import archive
from tests.testbed import packages

pytestmark = pytest.mark.host

REGISTRY = "127.0.0.1:5000"  # Docker speaks HTTP with a registry on the host itself
PUBLISHED = ImageSource().reference("ollama")
SERVE = f"""
DEBIAN_FRONTEND=noninteractive apt-get -y -q install --no-install-recommends docker-registry apache2-utils >/dev/null
htpasswd -bcB /etc/docker/registry/users puller hunter2 2>/dev/null
cat >/etc/docker/registry/config.yml <<END
version: 0.1
storage: {{filesystem: {{rootdirectory: /var/lib/docker-registry}}}}
http: {{addr: "{REGISTRY}"}}
auth: {{htpasswd: {{realm: site, path: /etc/docker/registry/users}}}}
END
chmod 644 /etc/docker/registry/users; systemctl restart docker-registry
docker load --quiet --input /root/image.tar; rm /root/image.tar
docker tag {PUBLISHED} {REGISTRY}/{PUBLISHED}
for try in $(seq 40); do curl -s -o /dev/null http://{REGISTRY}/v2/ && break; sleep 0.25; done
echo hunter2 | docker --config /root/push login --username puller --password-stdin {REGISTRY} >/dev/null 2>&1
docker --config /root/push push --quiet {REGISTRY}/{PUBLISHED}
docker image inspect --format '{{{{index .RepoDigests 0}}}}' {REGISTRY}/{PUBLISHED}
docker image rm {REGISTRY}/{PUBLISHED} {PUBLISHED} >/dev/null; rm -r /root/push
"""


@pytest.fixture(scope="module", params=["bookworm"])
def release(request: pytest.FixtureRequest) -> str:
    """The release that has docker-registry; Docker's client is as on the other."""
    return str(request.param)


@pytest.fixture(scope="module")
def password(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the file of the registry's password."""
    path = tmp_path_factory.mktemp("secrets") / "registry"
    path.write_text("hunter2\n")
    return path


@pytest.fixture(scope="module")
def site(machine: Any, site_for: Any, password: Path) -> Any:
    """Return a site whose images come from the registry on the host, which has one image, and that with its login."""
    packages.seed(machine)
    site = site_for(machine, {"docker": {}})
    first = site.run("docker")
    assert first.ok, first.output
    with archive().open("rb") as image:
        subprocess.run([*machine.ssh_command(), "sudo tee /root/image.tar >/dev/null"], stdin=image, check=True)
    machine.digest = machine.ssh(SERVE, timeout=180).stdout.split()[-1].partition("@")[2]
    packages.keep(machine)
    site.settings |= {
        "ollama": {"accelerator": "cpu", "health_interval": "PT1S", "ready_timeout": "PT40S"},
        "images": {
            "mirrors": {"docker.io": REGISTRY},
            "credentials": {REGISTRY: {"username": "puller", "password": {"file": str(password)}}},
        },
    }
    return site


def test_an_image_is_pulled_with_the_site_s_login(site: Any, machine: Any) -> None:
    run = site.run("ollama")
    assert run.ok, run.output
    assert "hunter2" not in run.output and "cHVsbGVyOmh1bnRlcjI" not in run.output
    site.assert_controls("ollama", machine)
    login = json.loads(machine.ssh("cat /etc/gpurack/registry/ollama/config.json").stdout)
    assert list(login["auths"]) == [REGISTRY]
    assert machine.ssh("stat -c '%U %a' /etc/gpurack/registry/ollama/config.json").stdout.split() == ["root", "600"]
    assert machine.ssh("test ! -e /root/.docker && echo untouched").stdout.strip() == "untouched"
    again = site.run("ollama")
    assert again.ok and again.changed[machine.name] == 0, again.output


def test_a_digest_is_what_is_pulled_and_run(site: Any, machine: Any) -> None:
    site.settings["images"]["overrides"] = {"ollama": {"digest": machine.digest}}
    run = site.run("ollama")
    assert run.ok, run.output
    site.assert_controls("ollama", machine)
    again = site.run("ollama")
    assert again.ok and again.changed[machine.name] == 0, again.output


def test_another_digest_is_refused_and_the_service_goes_on(site: Any, machine: Any) -> None:
    site.settings["images"]["overrides"] = {"ollama": {"digest": "sha256:" + "0" * 64}}
    run = site.run("ollama")
    site.settings["images"]["overrides"] = {}
    assert not run.ok
    assert "cannot be pulled; images.mirrors, images.credentials or images.archives" in run.output, run.output
    assert machine.ssh("curl -sf http://127.0.0.1:11434/api/version").stdout


def test_a_wrong_password_is_said(site: Any, machine: Any, password: Path) -> None:
    machine.ssh("docker rm --force ollama-ollama-1; docker image prune --all --force")
    password.write_text("wrong\n")
    run = site.run("ollama")
    password.write_text("hunter2\n")
    assert not run.ok and "cannot be pulled" in run.output, run.output
    repaired = site.run("ollama")
    assert repaired.ok, repaired.output
    site.assert_controls("ollama", machine)


def test_a_login_that_is_not_needed_goes(site: Any, machine: Any) -> None:
    site.settings["images"] = {"archives": {"ollama": str(archive())}}
    run = site.run("ollama")
    assert run.ok, run.output
    site.assert_controls("ollama", machine)
    assert machine.ssh("ls /etc/gpurack/registry").stdout == ""
