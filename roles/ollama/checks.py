"""Controls of the ollama role."""

from __future__ import annotations

import json
from typing import Any

from gpurack import containers
from gpurack.controls import NotApplicable, control
from gpurack.gpu.evidence import daemon_mode
from gpurack.gpu.runtime import reservation
from roles.ollama.settings import OllamaSettings


def _container(host: Any) -> dict[str, Any]:
    return containers.container(host, "ollama", "ollama")


@control(
    "OLLA-01",
    "The service runs, is healthy and comes back after a reboot",
    severity="critical",
    satisfies=["CIS Docker 1.6 5.27"],
)
def test_service_is_healthy(host: Any, settings: OllamaSettings) -> None:
    """The health check asks the server itself; a running process alone may be stuck."""
    problem = containers.health_problem(_container(host))
    assert not problem, f"the container {problem}"


@control("OLLA-02", "The API answers on its published address", severity="critical")
def test_api_answers(host: Any, settings: OllamaSettings) -> None:
    """What users and the gateway see: version in hand, the way through the port is open."""
    answer = host.run("curl --silent --show-error --fail --max-time 10 %s", f"{settings.url}/api/version")
    assert answer.rc == 0, f"{settings.publish} does not answer: {answer.stderr.strip()}"
    version = json.loads(answer.stdout)["version"]
    tag = settings.images.image("ollama").tag
    # 0.32.15-rocm is a build of 0.32.15; a release candidate says its whole name.
    assert tag == version or tag.startswith(f"{version}-"), f"the server is version {version}, not {tag}"


@control("OLLA-03", "The container runs the pinned image", severity="high")
def test_image_is_pinned(host: Any, settings: OllamaSettings) -> None:
    """A moved tag or a container left from before is another program than the one that was approved."""
    images = settings.images
    problem = containers.image_problem(host, _container(host), images.reference("ollama"), images.archive("ollama"))
    assert not problem, f"the container {problem}"


@control(
    "OLLA-04",
    "The API is published on the chosen address only",
    severity="critical",
    satisfies=["CIS Docker 1.6 5.14", "ISO 27001 A.8.20"],
)
def test_published_address(host: Any, settings: OllamaSettings) -> None:
    """Docker's published ports pass the host's firewall by; Ollama asks nobody who they are."""
    found = containers.published(_container(host))
    wanted = {f"11434/tcp on {settings.publish_address}:{settings.publish_port}"}
    assert found == wanted, f"published is {', '.join(sorted(found)) or 'nothing'}, not {', '.join(wanted)}"


@control("OLLA-05", "The server's environment is that of the settings", severity="medium")
def test_environment(host: Any, settings: OllamaSettings) -> None:
    """Context, parallelism and cache type decide memory; keep-alive decides the wait for the first answer."""
    found = containers.environment(_container(host))
    wrong = [
        f"{name} is {found.get(name)!r}, not {value!r}"
        for name, value in settings.environment.items()
        if found.get(name) != value
    ]
    wrong += [
        f"{name} is set, to {value!r}"
        for name, value in found.items()
        if name.startswith("OLLAMA_") and name not in settings.environment and not name.startswith("OLLAMA_DOUBLE_")
    ]
    assert not wrong, "; ".join(wrong)


@control("OLLA-06", "Prompts do not leave for Ollama's cloud", severity="high", satisfies=["ISO 27001 A.8.12"])
def test_no_cloud(host: Any, settings: OllamaSettings) -> None:
    """A model named ...-cloud is answered by ollama.com through the local port, unless the server is told not to."""
    if not settings.no_cloud:
        raise NotApplicable("no_cloud is off in the settings")
    assert "OLLAMA_NO_CLOUD=1" in _container(host)["Config"]["Env"], "OLLAMA_NO_CLOUD=1 is not set"


@control(
    "OLLA-07",
    "Models are kept in the chosen directory, for root alone",
    severity="medium",
    satisfies=["ISO 27001 A.8.3"],
)
def test_models_directory(host: Any, settings: OllamaSettings) -> None:
    """Fine-tuned weights are company data; another path may be on a disk without room or backup."""
    directory = host.file(settings.models_dir)
    assert directory.is_directory, f"{settings.models_dir} is missing"
    assert (directory.user, directory.mode) == ("root", 0o700), (
        f"{settings.models_dir} belongs to {directory.user} with mode {directory.mode:o}, not to root with 700"
    )
    mounts = {item["Destination"]: item["Source"] for item in _container(host)["Mounts"]}
    assert mounts.get("/root/.ollama") == settings.models_dir, f"mounted is {mounts.get('/root/.ollama')}"


@control(
    "OLLA-08",
    "The container has no more rights than it needs",
    severity="high",
    satisfies=["CIS Docker 1.6 5.5", "CIS Docker 1.6 5.26"],
)
def test_no_extra_rights(host: Any, settings: OllamaSettings) -> None:
    """A privileged container is root on the host."""
    config = _container(host)["HostConfig"]
    assert not config["Privileged"], "the container is privileged"
    assert "no-new-privileges:true" in (config["SecurityOpt"] or []), "no-new-privileges is not set"
    assert not config["CapAdd"], f"added capabilities: {config['CapAdd']}"


@control("OLLA-09", "The server has the GPUs of the settings", severity="high")
def test_gpus(host: Any, settings: OllamaSettings) -> None:
    """Without its reservation the server falls back to the CPU, silently and many times slower."""
    requests = _container(host)["HostConfig"].get("DeviceRequests") or []
    if settings.accelerator == "cpu":
        assert not requests, f"a CPU server reserves devices: {requests}"
        return
    assert len(requests) == 1, f"device requests are {requests}"
    wanted = reservation(daemon_mode(host), settings.gpu_count, settings.gpu_device_ids)
    found = {"driver": requests[0]["Driver"], "count": requests[0]["Count"], "device_ids": requests[0]["DeviceIDs"]}
    count = -1 if wanted.get("count") == "all" else wanted.get("count", 0)
    expected = {"driver": wanted["driver"], "count": count, "device_ids": wanted.get("device_ids")}
    wrong = [
        f"{key} is {found[key]}, not {value}" for key, value in expected.items() if (found[key] or 0) != (value or 0)
    ]
    assert not wrong, f"reserved: {'; '.join(wrong)}"


@control("OLLA-10", "The Compose file is the one of the settings, for root alone", severity="medium")
def test_compose_file(host: Any, settings: OllamaSettings) -> None:
    """The next `docker compose up` makes of the host what this file says."""
    path = "/etc/gpurack/compose/ollama/compose.yaml"
    file = host.file(path)
    assert file.exists, f"{path} is missing"
    assert (file.user, file.mode) == ("root", 0o600), f"{path} belongs to {file.user} with mode {file.mode:o}"
    answer = host.run("docker compose --file %s config --format json", path)
    assert answer.rc == 0, f"{path}: {answer.stderr.strip()}"
    service = json.loads(answer.stdout)["services"].get("ollama", {})
    assert service.get("image") == settings.images.reference("ollama"), f"{path} names image {service.get('image')}"
    assert service.get("environment") == settings.environment, f"{path} has another environment than the settings"
    ports = [(item.get("host_ip"), item["published"], item["target"]) for item in service.get("ports", [])]
    wanted = [(str(settings.publish_address), str(settings.publish_port), 11434)]
    assert ports == wanted, f"{path} publishes {ports}, not {wanted}"


@control("OLLA-11", "Other services of the host reach the server by name", severity="high")
def test_network(host: Any, settings: OllamaSettings) -> None:
    """AnythingLLM and the gateway ask http://ollama:11434 over Docker's network, not over the published port."""
    problem = containers.network_problem(_container(host), "ollama")
    assert not problem, f"the container {problem}"
