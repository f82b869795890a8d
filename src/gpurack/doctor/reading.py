"""From the script's output to typed evidence. Whatever a host prints, reading it never fails: it is a sick host."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeVar

from gpurack.doctor.evidence import (
    Api,
    CdiSpec,
    DkmsEntry,
    Engine,
    Evidence,
    Expected,
    Filesystem,
    Kernel,
    LoadedModel,
    LogLine,
    OllamaContainer,
    StoredModel,
    Unit,
)
from gpurack.doctor.probe import PART_SECONDS, Output
from gpurack.facts.gpu import Nvml, PciDevices, XidErrors
from gpurack.gpu.models import NvmlReport, PciInventory

T = TypeVar("T")

MUST = frozenset({"containers"})
"""Parts whose failure says that they do not know; in the others, a command that fails found nothing."""

VERSION = re.compile(r"\d{3,}\.\d+(?:\.\d+)?")
DKMS_LINE = re.compile(
    r"(?P<module>[\w.+-]+)[/,] ?(?P<version>[\w.+~-]+)(?:, (?P<kernel>[\w.+~-]+), [\w-]+)?: (?P<state>\w[\w ]*)"
)


def evidence_of(host: str, expected: Expected, output: Mapping[str, Output], now: float = 0) -> Evidence:
    """Return the evidence in the parts' output.

    Args:
        host: its name.
        expected: what the inventory says of it.
        output: of each part, by name.
        now: this machine's time when the script began, in seconds since 1970; 0 where clocks are not compared.
    """

    def lines(part: str) -> tuple[str, ...]:
        return output.get(part, Output()).lines

    about = dict(line.partition(" ")[::2] for line in lines("host"))
    running = about.get("kernel", "").strip()
    modules = _grouped(lines("modules"))
    kernel_log = log_lines(lines("kernel-log"))
    ports = _grouped(lines("firewall"))
    return Evidence(
        host=host,
        expected=expected,
        time=_number(about.get("time", "").strip()),
        memory_bytes=1024 * _number(about.get("memory", "").strip()),
        clock_skew=_skew(about.get("time", ""), now),
        container=about.get("container", "").strip() not in {"", "none"},
        secure_boot={"1": True, "0": False}.get(about.get("secureboot", "").strip()),
        running_kernel=running,
        kernels=kernels(lines("kernels"), running),
        dkms=dkms(lines("dkms")),
        dkms_errors=tuple(_grouped(lines("dkms")).get("error", ())),
        modules=tuple(name.strip() for name in modules.get("loaded", ())),
        module_version=_version([*modules.get("version", ()), *modules.get("nvrm", ())]),
        library_version=_version(line.rpartition(".so.")[2] for line in lines("library")),
        packages=dict(line.split()[:2] for line in lines("packages") if len(line.split()) >= 2),
        pci=_tolerant(PciDevices().process, lines("pci"), PciInventory()),
        device_files=tuple(line for line in lines("devices") if line),
        nvml=_nvml(output),
        nvml_skipped=" ".join(lines("nvml-gate")).strip(),
        xids=tuple(_tolerant(XidErrors().process, lines("kernel-log"), [])),
        units=units(lines("units")),
        fabric_manager_version=_version(lines("fabric-manager")),
        filesystems=filesystems(lines("disks")),
        kernel_log=kernel_log,
        engine=engine(lines("docker"), output.get("docker")),
        docker_said=tuple(_grouped(lines("docker")).get("said", ())),
        containers=containers(output),
        toolkit=next(iter(re.findall(r"\d+\.\d+\.\d+", " ".join(lines("toolkit")))), ""),
        cdi=cdi(lines("cdi")),
        api=api(output.get("api")),
        listeners=tuple(ports.get("listens", ())),
        firewall=tuple(ports.get("rule", ())),
        unanswered=tuple(name for name, part in output.items() if part.timed_out or (name in MUST and part.status)),
    )


def _tolerant(parse: Callable[[Sequence[str]], T], lines: Sequence[str], otherwise: T) -> T:
    """Return what another module's parser makes of lines; the doctor goes on where that one cannot."""
    try:
        return parse(list(lines))
    except Exception:
        return otherwise


def _grouped(lines: Iterable[str]) -> dict[str, list[str]]:
    """Return the rest of each line by its first word."""
    groups: dict[str, list[str]] = {}
    for line in lines:
        word, _, rest = line.partition(" ")
        groups.setdefault(word, []).append(rest)
    return groups


def _version(lines: Iterable[str]) -> str:
    """Return the first driver version in some lines."""
    return next((match[0] for line in lines if (match := VERSION.search(line))), "")


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else 0


def _skew(text: str, now: float) -> float:
    seconds = _number(text.strip())
    return seconds - now if seconds and now else 0


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _int(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def _nvml(output: Mapping[str, Output]) -> NvmlReport:
    part = output.get("nvml", Output())
    if part.timed_out:
        return NvmlReport(source="nvml", error="no answer in time: the driver hangs")
    return _tolerant(Nvml().process, part.lines, NvmlReport(error="its answer cannot be read")) or NvmlReport()


def kernels(lines: Iterable[str], running: str) -> tuple[Kernel, ...]:
    """Read the part ``kernels``; the running kernel is there even without a folder of its own."""
    found: dict[str, dict[str, Any]] = {running: {}} if running else {}
    current: dict[str, Any] = {}
    for line in lines:
        word, _, rest = line.partition(" ")
        if word == "kernel":
            current = found.setdefault(rest, {})
        elif word in {"bootable", "headers"}:
            current[word] = True
        elif word == "module":
            current["module"] = rest
        elif word == "version":
            current["module_version"] = rest
        elif word == "signer":
            current["signer"] = rest
    return tuple(
        Kernel(release=release, running=release == running, **{"bootable": False, **values})
        for release, values in found.items()
    )


def dkms(lines: Iterable[str]) -> tuple[DkmsEntry, ...]:
    """Read NVIDIA's lines of ``dkms status``, of version 2 and 3."""
    return tuple(
        DkmsEntry(
            module=match["module"], version=match["version"], kernel=match["kernel"] or "", state=match["state"].strip()
        )
        for line in lines
        if (match := DKMS_LINE.match(line))
    )


def units(lines: Iterable[str]) -> dict[str, Unit]:
    """Read the blocks of ``systemctl show``."""
    found: dict[str, Unit] = {}
    block: dict[str, str] = {}
    for line in [*lines, ""]:
        if line:
            key, _, value = line.partition("=")
            block[key] = value
            continue
        if name := block.get("Id", "").removesuffix(".service"):
            found[name] = Unit(
                name=name,
                load=block.get("LoadState", ""),
                active=block.get("ActiveState", ""),
                sub=block.get("SubState", ""),
                result=block.get("Result", ""),
            )
        block = {}
    return found


def filesystems(lines: Iterable[str]) -> tuple[Filesystem, ...]:
    """Read lines of ``df``: path, size, available, inodes, available inodes, mount point."""
    found: dict[str, Filesystem] = {}
    for line in lines:
        fields = line.split(None, 5)
        if len(fields) != 6:
            continue
        path, size, available, inodes, free, mount = fields
        before = found.get(mount)
        found[mount] = Filesystem(
            mount=mount,
            size_bytes=_number(size),
            available_bytes=_number(available),
            inodes=_number(inodes),
            inodes_available=_number(free),
            paths=(*(before.paths if before else ()), path),
        )
    return tuple(found.values())


def log_lines(lines: Iterable[str]) -> tuple[LogLine, ...]:
    """Read lines of a log that begin with a time: seconds since 1970, or RFC 3339 as Docker writes it."""
    found = []
    for line in lines:
        stamp, _, text = line.partition(" ")
        if (time := _time(stamp)) is not None:
            found.append(LogLine(time=time, text=text.strip()))
    return tuple(found)


def _time(stamp: str) -> float | None:
    if re.fullmatch(r"\d{1,12}(\.\d{1,9})?", stamp, re.ASCII):
        return float(stamp)
    match = re.fullmatch(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.\d+)?(Z|[+-]\d\d:\d\d)", stamp, re.ASCII)
    if match is None:
        return None
    try:
        return datetime.fromisoformat(match[1] + match[2].replace("Z", "+00:00")).timestamp()
    except (ValueError, OverflowError):
        return None


def engine(lines: Sequence[str], part: Output | None = None) -> Engine | None:
    """Read the part ``docker``; None where Docker does not run, and then perhaps its last words."""
    if part is not None and part.timed_out:
        return Engine(error=f"dockerd did not answer within {PART_SECONDS} seconds")
    groups = _grouped(lines)
    if "info" not in groups:
        return None
    text = groups["info"][0]
    info = _dict(_json(text))
    if not info:
        return Engine(error=text.strip() or "docker info printed nothing")
    errors = [_text(error) for error in _list(info.get("ServerErrors"))]
    return Engine(
        error=" ".join(errors),
        version=_text(info.get("ServerVersion")),
        runtimes=tuple(sorted(_dict(info.get("Runtimes")))),
        cdi_dirs=tuple(_text(folder) for folder in _list(info.get("CDISpecDirs"))),
        data_root=_text(info.get("DockerRootDir")),
    )


def containers(output: Mapping[str, Output]) -> tuple[OllamaContainer, ...]:
    """Read the service's containers; what was looked up inside belongs to the first."""
    found = []
    for line in output.get("containers", Output()).lines:
        described = _dict(_json(line))
        if described:
            found.append(_container(described))
    if not found:
        return ()
    log = log_lines(output.get("container-log", Output()).lines)
    inside = _inside(output.get("container-gpus", Output()).lines)
    return (found[0].model_copy(update={"log": log, **inside}), *found[1:])


def _container(described: Mapping[str, Any]) -> OllamaContainer:
    state, config = _dict(described.get("State")), _dict(described.get("HostConfig"))
    environment = dict(
        item.partition("=")[::2] for item in _list(_dict(described.get("Config")).get("Env")) if isinstance(item, str)
    )
    bindings = [
        (port, _text(item.get("HostIp")), _number(_text(item.get("HostPort"))))
        for port, items in _dict(config.get("PortBindings")).items()
        for item in map(_dict, _list(items))
    ]
    return OllamaContainer(
        name=_text(described.get("Name")).lstrip("/"),
        status=_text(state.get("Status")),
        exit_code=_int(state.get("ExitCode")),
        oom_killed=state.get("OOMKilled") is True,
        error=_text(state.get("Error")),
        health=_text(_dict(state.get("Health")).get("Status")),
        started=_time(_text(state.get("StartedAt"))) or 0,
        restarts=_int(described.get("RestartCount")),
        ollama_host=environment.get("OLLAMA_HOST", ""),
        bindings=tuple(bindings),
        gpu_requests=tuple(_requests(config)),
    )


def _requests(config: Mapping[str, Any]) -> Iterable[str]:
    for request in map(_dict, _list(config.get("DeviceRequests"))):
        ids = [_text(item) for item in _list(request.get("DeviceIDs"))]
        if request.get("Driver") == "cdi" or any(item.startswith("nvidia.com/") for item in ids):
            yield from ids
        else:
            driver, count = _text(request.get("Driver")) or "default", _int(request.get("Count"))
            yield f"driver {driver} count {count} {' '.join(ids)}".strip()
    if config.get("Runtime") == "nvidia":
        yield "runtime nvidia"


def _inside(lines: Sequence[str]) -> dict[str, Any]:
    groups = _grouped(lines)
    if "looked" not in groups:
        return {}
    return {
        "device_files": tuple(groups.get("device", ())),
        "nvidia_smi": "\n".join(groups["said"]) if "said" in groups else None,
        "nvidia_smi_status": _number(next(iter(groups.get("status", ())), "")),
    }


def cdi(lines: Iterable[str]) -> tuple[CdiSpec, ...]:
    """Read the part ``cdi``."""
    found: list[dict[str, Any]] = []
    for line in lines:
        word, _, rest = line.partition(" ")
        if word == "spec":
            found.append({"path": rest, "devices": [], "missing": []})
        elif not found:
            continue
        elif word == "library":
            found[-1]["driver_version"] = _version([rest])
        elif word in {"device", "missing"}:
            found[-1]["devices" if word == "device" else word].append(rest)
    return tuple(CdiSpec(**spec) for spec in found)


def api(part: Output | None) -> Api:
    """Read what Ollama's API answered."""
    if part is None:
        return Api()
    answers = {}
    for line in part.lines:
        word, _, rest = line.partition(" ")
        name, _, text = rest.partition(" ")
        if word == "answer":
            answers[name] = text.strip()
    version = _text(_dict(_json(answers.get("version", ""))).get("version"))
    if not version:
        said = answers.get("version", "")
        if "/dev/tcp/" in said:  # bash's own words, twice
            said = said.rpartition(": ")[2]
        reason = "it did not answer within 10 seconds" if part.timed_out else said or "it closed the connection"
        return Api(error=reason)
    tags = _dict(_json(answers.get("tags", ""))).get("models")
    loaded = _list(_dict(_json(answers.get("ps", ""))).get("models"))
    return Api(
        version=version,
        models=None
        if not isinstance(tags, list)
        else tuple(StoredModel(name=_text(item.get("name")), size=_int(item.get("size"))) for item in map(_dict, tags)),
        loaded=tuple(
            LoadedModel(
                name=_text(item.get("name")), size=_int(item.get("size")), size_vram=_int(item.get("size_vram"))
            )
            for item in map(_dict, loaded)
        ),
    )
