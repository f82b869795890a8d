"""From what a host prints to evidence: the script's parts, real programs' output, and no text that makes it fail."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpurack.doctor.diagnosis import diagnose
from gpurack.doctor.evidence import Evidence, Expected, is_loopback
from gpurack.doctor.probe import IncompleteError, Output, Part, parts, script, split
from gpurack.doctor.reading import (
    api,
    cdi,
    containers,
    dkms,
    engine,
    evidence_of,
    filesystems,
    kernels,
    log_lines,
    units,
)

MARK = "@@mark"
GPU_HOST = Expected(publish_address="0.0.0.0")  # noqa: S104 - a setting
NAMES = [part.name for part in parts(GPU_HOST)]

INSPECT: dict[str, Any] = {
    "Name": "/ollama-ollama-1",
    "RestartCount": 2,
    "State": {
        "Status": "exited",
        "ExitCode": 137,
        "OOMKilled": True,
        "Error": "",
        "StartedAt": "2026-11-24T14:07:47.991946777Z",
        "Health": {"Status": "unhealthy"},
    },
    "Config": {"Env": ["PATH=/bin", "OLLAMA_HOST=0.0.0.0:11434"]},
    "HostConfig": {
        "PortBindings": {"11434/tcp": [{"HostIp": "127.0.0.1", "HostPort": "11434"}]},
        "DeviceRequests": [
            {"Driver": "nvidia", "Count": -1, "DeviceIDs": None, "Capabilities": [["gpu"]]},
            {"Driver": "cdi", "Count": 0, "DeviceIDs": ["nvidia.com/gpu=all"], "Capabilities": None},
        ],
        "Runtime": "runc",
    },
}


def output(*lines: str, status: int = 0) -> Output:
    """Return a part's output."""
    return Output(tuple(lines), status)


def run(*wanted: Part) -> Any:
    """Run a script of some parts here and return what is read of its output."""
    made = subprocess.run(["/bin/sh", "-c", script(wanted, MARK)], capture_output=True, text=True, check=True)
    return split(made.stdout, MARK)


def test_parts_come_back_whole_with_their_exit_status() -> None:
    found = run(
        Part("plain", "echo one; echo; echo two"),
        Part("silent", "true"),
        Part("no-newline", "printf three"),
        Part("fails", "echo said; exit 3"),
        Part("noisy", "echo no >&2; exit 1"),
    )
    assert found["plain"] == output("one", "", "two")
    assert found["silent"] == output()
    assert found["no-newline"] == output("three")
    assert found["fails"] == output("said", status=3)
    assert found["noisy"] == output(status=1)


def test_a_part_that_hangs_is_ended_and_the_rest_goes_on() -> None:
    found = run(Part("hangs", "echo begun; sleep 30", seconds=1), Part("next", "echo here"))
    assert found["hangs"].timed_out and found["hangs"].lines == ("begun",)
    assert found["next"].lines == ("here",) and not found["next"].timed_out


def test_bytes_that_are_no_text_are_left_out() -> None:
    """pyinfra's connection would break on them; what is around them is read, and so is text of other languages."""
    assert run(Part("raw", r"printf 'a\377b \303\274\n\000c\n'"))["raw"].lines == ("ab ü", "\x00c")


def test_a_log_cannot_forge_a_part() -> None:
    found = run(Part("log", "echo '@@other end log 0'; echo '@@mark begin-ning'"), Part("after", "echo x"))
    assert found["log"].lines == ("@@other end log 0", "@@mark begin-ning")
    assert found["after"].lines == ("x",)


def test_a_script_that_was_cut_off_is_no_examination() -> None:
    whole = subprocess.run(
        ["/bin/sh", "-c", script([Part("a", "echo 1"), Part("b", "echo 2")], MARK)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for length in range(0, len(whole) - 1, 7):
        with pytest.raises(IncompleteError):
            split(whole[:length], MARK)


@pytest.mark.parametrize("expected", [GPU_HOST, Expected(accelerator="cpu"), Expected(publish_address="::1")])
def test_every_part_is_a_script_its_interpreter_can_read(expected: Expected) -> None:
    for part in parts(expected):
        checked = subprocess.run(
            [part.interpreter, "-n", "-c", part.command], capture_output=True, text=True, check=False
        )
        assert checked.returncode == 0, f"{part.name}: {checked.stderr}"


def test_a_host_that_computes_on_its_cpu_is_not_asked_for_gpus() -> None:
    names = {part.name for part in parts(Expected(accelerator="cpu"))}
    assert names == {
        *("host", "disks", "units", "kernel-log", "docker"),
        *("containers", "container-log", "api", "firewall"),
    }


def test_only_what_is_applied_is_read() -> None:
    names = {part.name for part in parts(Expected(accelerator=None, ollama=False, docker=False))}
    assert "pci" in names and not names & {"docker", "containers", "api", "firewall"}


def test_kernels() -> None:
    running, newer = kernels(
        ["kernel 6.1-1", "bootable", "headers", "module /m/nvidia.ko", "version 550.1", "signer DKMS", "kernel 6.1-2"],
        "6.1-1",
    )
    assert running.running and running.headers and running.bootable
    assert (running.module, running.module_version, running.signer) == ("/m/nvidia.ko", "550.1", "DKMS")
    assert not newer.headers and not newer.bootable and not newer.module
    assert [kernel.release for kernel in kernels([], "6.18")] == ["6.18"]


def test_dkms_status_of_both_versions() -> None:
    lines = [
        "nvidia-current, 525.147.05, 6.1.0-13-amd64, x86_64: installed",
        "nvidia-current/550.163.01, 6.12.1-amd64, x86_64: installed (original_module exists)",
        "nvidia-current/550.163.01: added",
        "error no such thing",
    ]
    assert [(item.version, item.kernel, item.state) for item in dkms(lines)] == [
        ("525.147.05", "6.1.0-13-amd64", "installed"),
        ("550.163.01", "6.12.1-amd64", "installed"),
        ("550.163.01", "", "added"),
    ]


def test_units() -> None:
    text = (
        "Id=docker.service\nLoadState=loaded\nActiveState=failed\nSubState=failed\nResult=exit-code\n\n"
        "Id=nvidia-persistenced.service\nLoadState=not-found\nActiveState=inactive\nSubState=dead\nResult=success"
    )
    found = units(text.splitlines())
    assert not found["docker"].running and found["docker"].installed and found["docker"].result == "exit-code"
    assert not found["nvidia-persistenced"].installed


def test_filesystems_are_listed_once() -> None:
    lines = ["/ 1000 500 10 5 /", "/srv/ollama 99 1 0 0 /srv/with blank", "/var 1000 500 10 5 /", "broken"]
    root, models = filesystems(lines)
    assert root.paths == ("/", "/var") and root.free_percent == 50
    assert models.mount == "/srv/with blank" and models.available_bytes == 1


def test_log_lines_of_both_kinds() -> None:
    lines = [
        "1795529267.64 h kernel: text",
        "2026-11-24T14:07:47.991946777Z said",
        "2026-99-24T14:07:47Z no",
        "no time",
    ]
    first, second = log_lines(lines)
    assert (first.time, first.text) == (1795529267.64, "h kernel: text")
    assert (second.time, second.text) == (1795529267.0, "said")


def test_engine() -> None:
    info = {"ServerVersion": "26.1.5", "Runtimes": {"runc": {}, "nvidia": {}}, "CDISpecDirs": ["/etc/cdi"]}
    found = engine([f"info {json.dumps(info)}"])
    assert found is not None and found.runtimes == ("nvidia", "runc") and found.cdi_dirs == ("/etc/cdi",)
    assert engine(["stopped", "said failed to start"]) is None
    assert engine(["absent"]) is None
    refused = engine(["info Cannot connect to the Docker daemon"])
    assert refused is not None and "Cannot connect" in refused.error
    hangs = engine([], output(status=124))
    assert hangs is not None and "did not answer" in hangs.error


def test_container() -> None:
    [found] = containers(
        {
            "containers": output(json.dumps(INSPECT)),
            "container-log": output("2026-11-24T14:07:48Z cudaMalloc failed: out of memory"),
            "container-gpus": output("looked", "device /dev/nvidia0", "status 255", "said Failed to initialize NVML"),
        }
    )
    assert (found.name, found.status, found.exit_code, found.oom_killed) == ("ollama-ollama-1", "exited", 137, True)
    assert found.health == "unhealthy" and found.restarts == 2 and found.started == 1795529267
    assert found.bindings == (("11434/tcp", "127.0.0.1", 11434),)
    assert found.gpu_requests == ("driver nvidia count -1", "nvidia.com/gpu=all")
    assert found.device_files == ("/dev/nvidia0",) and found.nvidia_smi_status == 255
    assert found.log[0].text == "cudaMalloc failed: out of memory"


def test_inside_of_a_container_that_does_not_run_is_not_known() -> None:
    [found] = containers({"containers": output(json.dumps(INSPECT))})
    assert found.device_files is None and found.nvidia_smi is None


def test_cdi() -> None:
    lines = ["spec /etc/cdi/nvidia.yaml", "library libcuda.so.550.163.01", "device 0", "device all", "missing /usr/x"]
    [found] = cdi(lines)
    assert found.driver_version == "550.163.01" and found.devices == ("0", "all") and found.missing == ("/usr/x",)


def test_api() -> None:
    tags, ps = {"models": [{"name": "m", "size": 5}]}, {"models": [{"name": "m", "size": 9, "size_vram": 4}]}
    found = api(
        output(
            'answer version {"version":"0.32.15"} ', f"answer tags {json.dumps(tags)} ", f"answer ps {json.dumps(ps)} "
        )
    )
    assert found.version == "0.32.15" and found.models is not None
    assert found.models[0].size == 5 and found.loaded[0].size_vram == 4
    words = "environment: connect: Connection refused environment: line 2: /dev/tcp/127.0.0.1/1: Connection refused"
    refused = api(output(f"answer version {words} "))
    assert refused.version == "" and refused.error == "Connection refused"
    assert api(output("answer version 404 page not found ")).error == "404 page not found"
    assert "10 seconds" in api(output(status=124)).error
    assert api(output("answer version ")).error == "it closed the connection"


def test_a_driver_that_hangs_is_an_error_of_the_driver() -> None:
    evidence = evidence_of("h", GPU_HOST, {"host": output("uid 0"), "nvml": output(status=124)})
    assert "hangs" in evidence.nvml.error and evidence.unanswered == ("nvml",)


@pytest.mark.parametrize(
    ("address", "loopback"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("[::1]", True), ("localhost", True), ("::", False), ("", False)],
)
def test_loopback(address: str, loopback: bool) -> None:
    assert is_loopback(address) is loopback


# Words of the real output, put together in any order: deeper into the parsers than random text would get.
WORDS = (
    *(
        "uid",
        "0",
        "time",
        "1795529267",
        "kernel",
        "6.1.0-31-amd64",
        "module",
        "version",
        "550.163.01",
        "signer",
        "loaded",
    ),
    *(
        "nvidia",
        "nouveau",
        "nvrm",
        "NVRM: Xid (PCI:0000:01:00): 79, pid=1",
        "NVRM: Xid (PCI:",
        "Id=docker.service",
        "=",
    ),
    *("nvidia-current/550.163.01,", "x86_64:", "installed", "added", "info", "said", "stopped", "spec", "library"),
    *("device", "missing", "looked", "status", "answer", "ps", "tags", "{", "}", "[]", "null", '{"models": [null, 1]}'),
    *(
        '{"version": 3}',
        '{"State": [], "HostConfig": {"PortBindings": {"x": [1]}}}',
        '{"version": "1"}',
        "rule",
        "listens",
    ),
    *("2026-11-24T14:07:47Z", "9999-12-31T23:59:59-23:59", "0001-01-01T00:00:00+23:59", "1" * 30, "-1", "٣", "\x00"),
    *("Killed process 1 (ollama)", "offloaded 20/33 layers", '"inference compute" library=cpu', "| 500 | POST", "²"),
    *("0000:01:00.0", "0x10de", "0x2684", "0x030000", json.dumps(INSPECT)),
)
LINE = st.one_of(st.text(max_size=40), st.lists(st.sampled_from(WORDS), max_size=7).map(" ".join))
OUTPUT = st.builds(Output, st.lists(LINE, max_size=8).map(tuple), st.sampled_from([0, 1, 124]))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from([*INSPECT, *INSPECT["State"], *INSPECT["HostConfig"], "models", "name"]), inner
        )
    ),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(NAMES), OUTPUT))
def test_no_output_makes_reading_or_diagnosis_fail(found: dict[str, Output]) -> None:
    evidence = evidence_of("h", GPU_HOST, found, now=1795529267)
    assert isinstance(evidence, Evidence)
    assert diagnose(evidence).outcomes


@settings(max_examples=200, deadline=None)
@given(JSON, JSON)
def test_no_json_makes_reading_fail(first: Any, second: Any) -> None:
    lines = {
        "containers": output(json.dumps(first), json.dumps({"State": first, "HostConfig": second, "Config": second})),
        "docker": output(f"info {json.dumps(first)}"),
        "api": output(
            'answer version {"version": "1"}',
            f"answer tags {json.dumps(first)}",
            f'answer ps {{"models": {json.dumps(second)}}}',
        ),
    }
    assert diagnose(evidence_of("h", GPU_HOST, lines)).outcomes


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_no_text_makes_splitting_fail(text: str) -> None:
    with pytest.raises(IncompleteError):
        split(text, MARK)
    assert isinstance(split(f"{MARK} begin a\n{text}\n\n{MARK} end a 0\n{MARK} complete", MARK), dict)
