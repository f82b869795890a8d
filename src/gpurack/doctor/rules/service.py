"""Tests of the service: Ollama's container, its memory, its address, its answers."""

from __future__ import annotations

import re
from collections import Counter
from typing import Literal

from gpurack.doctor.diagnosis import NOT_APPLICABLE, Sign, test
from gpurack.doctor.evidence import Evidence, LogLine, OllamaContainer, address_and_port, is_loopback, is_wildcard
from gpurack.doctor.rules.host import gib

Answer = Sign | Literal["not applicable"] | None

RECENT_SECONDS = 24 * 3600
KILLED = re.compile(r"Killed process \d+ \((?P<name>[^)]*)\)")
LAYERS = re.compile(r"offloaded (?P<done>\d+)/(?P<all>\d+) layers")
LIBRARY = re.compile(r'"inference compute".*?\blibrary="?(?P<name>\w+)')
REQUEST = re.compile(r"\| +(?P<status>499|5\d\d) +\|")
SMALLER = (
    "a smaller quantisation or model; ollama.context_length lower; ollama.num_parallel = 1; "
    "ollama.max_loaded_models = 1"
)
NO_SUCH_PROGRAM = frozenset({126, 127})
DOWN = ("ollama-silent", "port-unreachable", "answers-fail", "clients-gave-up")


def said(container: OllamaContainer | None, *words: str, last: int = 3) -> list[str]:
    """Return the last lines of the container's log that hold one of some words."""
    lines = container.log if container else ()
    return [line.text for line in lines if any(word in line.text for word in words)][-last:]


def recent(evidence: Evidence, line: LogLine) -> bool:
    """Tell whether a line was written in the last day; older ones are history."""
    return not evidence.time or line.time >= evidence.time - RECENT_SECONDS


@test(
    "oom-killed",
    "The host ran out of memory",
    severity="critical",
    error="OOM",
    explains=("ollama-down", *DOWN),
)
def oom_killed(evidence: Evidence) -> Sign | None:
    """The kernel ends the largest process to save the rest, and that is the model; or Ollama refuses to load it."""
    container = evidence.ollama
    victims = Counter(
        match["name"] for line in evidence.kernel_log if recent(evidence, line) and (match := KILLED.search(line.text))
    )
    seen = [f"the kernel killed {name}, {number} times in a day" for name, number in victims.items()]
    seen += [line.text for line in evidence.kernel_log if recent(evidence, line) and KILLED.search(line.text)][-2:]
    if container is not None and container.oom_killed:
        seen.append(f"container {container.name}: OOMKilled, exit status {container.exit_code}")
    seen += said(container, "requires more system memory", "signal: killed")
    if not seen:
        return None
    return Sign(
        seen,
        f"Less memory: {SMALLER}. Or more: RAM, swap, the container's memory limit, layers on the GPU; on machines "
        "with several NUMA nodes `numactl --interleave=all`. Settings take effect with: " + evidence.deploy("ollama"),
    )


@test(
    "gpu-out-of-memory",
    "The GPU ran out of memory",
    severity="critical",
    error="OOM",
    needs=("gpu", "ollama"),
    explains=("model-spilled", "answers-fail"),
)
def gpu_out_of_memory(evidence: Evidence) -> Answer:
    """The model, its context and whatever else uses the card do not fit it: requests fail."""
    seen = said(evidence.ollama, "CUDA error: out of memory", "cudaMalloc failed")
    if not seen:
        return None
    users = [
        f"GPU {gpu.index}: process {process.pid} {process.name} holds {gib(process.memory_bytes or 0)}"
        for gpu in evidence.nvml.gpus
        for process in gpu.processes
    ]
    return Sign(
        [*seen, *users[:8]],
        f'Less memory: {SMALLER}; ollama.flash_attention = True with ollama.kv_cache_type = "q8_0" halves the context. '
        f"Or more: further GPUs in ollama.gpu_count. Then: {evidence.deploy('ollama')}",
    )


@test(
    "ollama-down",
    "Ollama's container does not run",
    severity="critical",
    needs=("docker", "ollama"),
    explains=("container-lost-gpu", "ollama-on-cpu", *DOWN),
)
def ollama_down(evidence: Evidence) -> Answer:
    """Nobody answers while it is down."""
    engine, container = evidence.engine, evidence.ollama
    if engine is None or engine.error or not evidence.knows("containers"):
        return NOT_APPLICABLE
    if container is None:
        return Sign(["Docker has no container of the project ollama"], evidence.deploy("ollama"))
    if container.status == "running" and container.restarts < 3:
        return None
    seen = [f"container {container.name} is {container.status}, exit status {container.exit_code}"]
    seen += [f"restarted {container.restarts} times"] if container.restarts else []
    seen += [container.error] if container.error else []
    if container.exit_code == 137 and not container.oom_killed:
        seen.append("137 is SIGKILL: from `docker kill`, from a stop that took too long, or from the OOM killer")
    if "address already in use" in container.error or "port is already allocated" in container.error:
        return Sign(
            [*seen, *(f"listening: {item}" for item in evidence.listeners)],
            f"Another program has the port: `ss -ltnp 'sport = :{evidence.expected.publish_port}'` names it; stop "
            f"it, or set ollama.publish_port. Then: {evidence.deploy('ollama')}",
            title="Ollama's port is taken",
        )
    if container.status == "paused":
        return Sign(seen, f"`docker unpause {container.name}`", title="Ollama's container is paused")
    return Sign(
        [*seen, *said(container, "no space left", "address already in use", "error")],
        f"{evidence.deploy('ollama')}; why it ended: `docker logs --tail 50 {container.name}`",
    )


@test(
    "gpu-not-requested",
    "Ollama's container was made without GPUs",
    severity="critical",
    needs=("gpu", "ollama"),
    explains=("container-lost-gpu", "ollama-on-cpu", "model-spilled"),
)
def gpu_not_requested(evidence: Evidence) -> Answer:
    """The settings give it GPUs, its container asks for none: every model runs on the CPU."""
    container = evidence.ollama
    if container is None or evidence.expected.accelerator != "nvidia":
        return NOT_APPLICABLE
    if container.gpu_requests or container.device_files:
        return None
    return Sign([f"container {container.name} has no device request"], evidence.deploy("ollama"))


@test(
    "container-lost-gpu",
    "The container has lost its GPUs",
    severity="critical",
    needs=("gpu", "ollama"),
    explains=("ollama-on-cpu", "model-spilled", "answers-fail"),
)
def container_lost_gpu(evidence: Evidence) -> Answer:
    """A reload of systemd takes device rights away that Docker's cgroup driver does not know of: Unknown Error."""
    container = evidence.ollama
    if container is None or container.status != "running":
        return NOT_APPLICABLE
    logged = said(container, "Failed to initialize NVML", "no CUDA-capable device")
    answer, status = container.nvidia_smi, container.nvidia_smi_status
    seen = list(logged)
    if answer is not None and status not in {0, *NO_SUCH_PROGRAM}:
        seen += [f"nvidia-smi in the container, exit status {status}: {line}" for line in answer.splitlines()[:3]]
    if container.gpu_requests and container.device_files == ():
        seen.append("no /dev/nvidia* in the container")
    if not seen:
        return NOT_APPLICABLE if answer is None and container.device_files is None else None
    return Sign(
        seen,
        f"`docker restart {container.name}` brings them back for now; for good by CDI devices, which the "
        f"container_toolkit role declares: {evidence.deploy('gpu')}",
    )


@test(
    "ollama-host-wrong",
    "Ollama listens inside its container only",
    severity="critical",
    error="TIMEOUT",
    needs=("ollama",),
    explains=("published-elsewhere", *DOWN),
)
def ollama_host_wrong(evidence: Evidence) -> Answer:
    """A server bound to 127.0.0.1 of its container is not behind the published port: clients wait, or are cut off."""
    container = evidence.ollama
    if container is None or not container.ollama_host:
        return NOT_APPLICABLE
    bound = container.ollama_host.rpartition("://")[2]
    address, _, port = bound.rpartition(":") if bound.count(":") == 1 or "]:" in bound else (bound, "", "")
    targets = {target.partition("/")[0] for target, _, _ in container.bindings}
    seen = []
    if is_loopback(address):
        seen.append(f"OLLAMA_HOST={container.ollama_host} in {container.name}")
    elif targets and port.isdigit() and port not in targets:
        seen.append(
            f"OLLAMA_HOST={container.ollama_host}, and published is the container's port {', '.join(sorted(targets))}"
        )
    if not seen:
        return None
    return Sign(
        [*seen, *said(container, "Listening on", last=1)],
        f"OLLAMA_HOST=0.0.0.0:11434 in the container; the host's side is decided by ollama.publish_address. Run: "
        f"{evidence.deploy('ollama')}",
    )


@test(
    "published-elsewhere",
    "The API is published on another address than the settings say",
    severity="critical",
    needs=("ollama",),
    explains=("ollama-silent", "port-unreachable"),
)
def published_elsewhere(evidence: Evidence) -> Answer:
    """Too narrow, and clients meet TIMEOUT; too wide, and everybody reaches a server that asks nobody who they are."""
    container, wanted = evidence.ollama, evidence.expected
    if container is None:
        return NOT_APPLICABLE
    found = [(address, port) for _, address, port in container.bindings]
    wide = is_wildcard(wanted.publish_address)
    if any(
        port == wanted.publish_port and (address == wanted.publish_address or (wide and is_wildcard(address)))
        for address, port in found
    ):
        return None
    there = ", ".join(address_and_port(address or "0.0.0.0", port) for address, port in found)  # noqa: S104 - not bound
    seen = [f"published: {there or 'nothing'}", f"settings: {wanted.publish}"]
    if any(is_wildcard(address) for address, _ in found) and not wide:
        return Sign(seen, evidence.deploy("ollama"), title="The API is open wider than the settings say")
    local = bool(found) and all(is_loopback(address) for address, _ in found) and not wanted.local_only
    return Sign(
        seen,
        evidence.deploy("ollama"),
        title="The API is published on this host alone" if local else "",
        error="TIMEOUT",
    )


@test(
    "ollama-silent",
    "Ollama does not answer",
    severity="critical",
    error="TIMEOUT",
    needs=("ollama",),
    explains=("port-unreachable", "answers-fail", "clients-gave-up"),
)
def ollama_silent(evidence: Evidence) -> Answer:
    """The container runs, and its API says nothing at the address it is published on."""
    if evidence.api.version:
        return None
    container = evidence.ollama
    seen = [f"{evidence.expected.publish}: {evidence.api.error or 'not asked'}"]
    if container is not None:
        seen += [f"container {container.name} is {container.status}, {container.health or 'without a health check'}"]
        seen += said(container, "Listening on", "error", last=2)
    name = container.name if container else "ollama-ollama-1"
    return Sign(seen, f"`docker restart {name}`; if it stays silent: `docker logs --tail 50 {name}`")


@test(
    "port-unreachable",
    "The API cannot be reached from here",
    severity="high",
    error="TIMEOUT",
    needs=("ollama",),
)
def port_unreachable(evidence: Evidence) -> Answer:
    """It answers on the host and not over the network: something between drops the packets, and clients wait."""
    api = evidence.api
    if api.reachable is None or evidence.expected.local_only:
        return NOT_APPLICABLE
    if api.reachable or not api.version:
        return None
    return Sign(
        [
            f"on the host: Ollama {api.version} answers at {evidence.expected.publish}",
            f"from this machine: {api.reached_at}: {api.reach_error}",
            *(f"firewall of the host: {rule}" for rule in evidence.firewall[:6]),
        ],
        "Let the clients' networks through to the port, in the host's firewall (`nft -a list ruleset` shows the rule, "
        "`nft delete rule ...` removes it) and in those on the way. If this machine is not meant to reach it, "
        "this is as wanted: ask from a client.",
    )


@test(
    "ollama-on-cpu",
    "Ollama computes on the CPU",
    severity="critical",
    needs=("gpu", "ollama"),
    explains=("model-spilled", "clients-gave-up"),
)
def ollama_on_cpu(evidence: Evidence) -> Answer:
    """Ollama found no GPU when it started and went on without: answers take ten to fifty times as long."""
    container = evidence.ollama
    if container is None or container.status != "running":
        return NOT_APPLICABLE
    libraries = [match["name"].lower() for line in container.log if (match := LIBRARY.search(line.text))]
    seen = []
    if libraries and set(libraries) == {"cpu"}:
        seen += said(container, '"inference compute"', last=1)
    if not [name for name in libraries if name != "cpu"]:
        seen += said(container, "no compatible GPUs were discovered", last=1)
    seen += [
        f"model {model.name}: nothing of it in GPU memory"
        for model in evidence.api.loaded
        if model.size and not model.size_vram
    ]
    if not seen:
        return NOT_APPLICABLE if not libraries and not evidence.api.loaded else None
    return Sign(
        seen,
        f"If no cause is listed before this: `docker restart {container.name}` makes Ollama look for the GPUs again. "
        " A card older than its libraries support (compute capability below 5.0) stays unused.",
    )


@test("model-too-large", "A model does not fit the memory", severity="medium", needs=("ollama",))
def model_too_large(evidence: Evidence) -> Answer:
    """It is computed on the CPU in part, or not loaded at all; its context comes on top of its size."""
    gpus = [gpu.memory_total_bytes or 0 for gpu in evidence.nvml.gpus]
    room = sum(gpus) if evidence.gpu_expected else evidence.memory_bytes
    if not room or not evidence.api.models:
        return NOT_APPLICABLE
    large = [model for model in evidence.api.models if model.size > room]
    if not large:
        return None
    kind = f"{len(gpus)} GPUs" if evidence.gpu_expected else "the host"
    return Sign(
        [f"{model.name} is {gib(model.size)}, {kind} have {gib(room)}" for model in large],
        "Pull a smaller quantisation (`ollama show NAME` tells what it is), or take it off this host: `docker exec "
        "ollama-ollama-1 ollama rm NAME`.",
    )


@test(
    "model-spilled",
    "A model is computed on the CPU in part",
    severity="high",
    needs=("gpu", "ollama"),
    explains=("clients-gave-up",),
)
def model_spilled(evidence: Evidence) -> Answer:
    """Layers that do not fit the GPU's memory run on the CPU and set the pace for all of them."""
    seen = [
        f"{model.name}: {gib(model.size_vram)} of {gib(model.size)} in GPU memory"
        for model in evidence.api.loaded
        if 0 < model.size_vram < model.size * 0.99
    ]
    if not evidence.api.loaded:
        lines = [line.text for line in (evidence.ollama.log if evidence.ollama else ()) if LAYERS.search(line.text)]
        match = LAYERS.search(lines[-1]) if lines else None
        if match and int(match["done"]) < int(match["all"]):
            seen.append(lines[-1])
        elif not match:
            return NOT_APPLICABLE
    if not seen:
        return None
    memory = [
        f"GPU {gpu.index} {gpu.name}: {gib(gpu.memory_used_bytes or 0)} of {gib(gpu.memory_total_bytes)} used"
        for gpu in evidence.nvml.gpus
        if gpu.memory_total_bytes
    ]
    return Sign(
        [*seen, *memory[:8]],
        f'{SMALLER}; ollama.flash_attention = True with ollama.kv_cache_type = "q8_0"; or further GPUs. '
        f"Then: {evidence.deploy('ollama')}",
    )


@test("answers-fail", "Requests end in errors", severity="high", needs=("ollama",))
def answers_fail(evidence: Evidence) -> Answer:
    """The server runs and its answers do not come: its log says what happened at that time."""
    lines = _requests(evidence, "5")
    if not lines:
        return None
    return Sign(
        [f"{len(lines)} requests failed in the last day", lines[-1], *said(evidence.ollama, "CUDA error", "killed")],
        "503 is a full queue (ollama.max_queue, ollama.num_parallel). For 500: `docker logs --since 1h "
        "ollama-ollama-1` at the time of the request.",
    )


@test("clients-gave-up", "Clients gave up waiting", severity="medium", error="TIMEOUT", needs=("ollama",))
def clients_gave_up(evidence: Evidence) -> Answer:
    """The answer or the loading of the model took longer than the client or a proxy waits."""
    lines = _requests(evidence, "499")
    if not lines:
        return None
    return Sign(
        [f"{len(lines)} requests were given up in the last day", lines[-1]],
        'Keep models in memory (ollama.keep_alive = "forever"), longer timeouts in clients and proxies '
        "(proxy_read_timeout), a smaller model, or streaming answers.",
    )


def _requests(evidence: Evidence, status: str) -> list[str]:
    """Return the log's lines of requests that ended with a status that begins so."""
    lines = evidence.ollama.log if evidence.ollama else ()
    return [
        line.text
        for line in lines
        if recent(evidence, line) and (match := REQUEST.search(line.text)) and match["status"].startswith(status)
    ]


@test("no-model", "There is no model on the host", severity="low", needs=("ollama",))
def no_model(evidence: Evidence) -> Answer:
    """The server answers, and has nothing to answer with."""
    if evidence.api.models is None:
        return NOT_APPLICABLE
    if evidence.api.models:
        return None
    return Sign(
        ["/api/tags lists none", f"models are kept in {evidence.expected.models_dir}"],
        "`docker exec ollama-ollama-1 ollama pull deepseek-r1:7b`",
    )
