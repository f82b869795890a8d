"""nvidia-smi's XML: documents with the elements of its own DTD (v12, of nvidia-smi 535 and 550), and anything else."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpurack.facts.gpu import Nvml
from gpurack.gpu.models import GpuProcess, MigInstance, NvmlReport
from gpurack.gpu.smi import parse

HEAD = '<?xml version="1.0" ?>\n<!DOCTYPE nvidia_smi_log SYSTEM "nvsmi_device_v12.dtd">\n'
MIB = 1024 * 1024

GPU_550 = """
<gpu id="00000000:3B:00.0">
  <product_name>NVIDIA A100-SXM4-40GB</product_name><product_architecture>Ampere</product_architecture>
  <persistence_mode>Enabled</persistence_mode>
  <mig_mode><current_mig>Enabled</current_mig><pending_mig>Enabled</pending_mig></mig_mode>
  <mig_devices>
    <mig_device><index>0</index><gpu_instance_id>1</gpu_instance_id><compute_instance_id>0</compute_instance_id>
      <fb_memory_usage><total>19968 MiB</total><reserved>0 MiB</reserved><used>37 MiB</used><free>19930 MiB</free>
      </fb_memory_usage></mig_device>
    <mig_device><index>1</index><fb_memory_usage><total>19968 MiB</total></fb_memory_usage></mig_device>
  </mig_devices>
  <uuid>GPU-a100aaaa-0000-4000-8000-000000000000</uuid>
  <pci><pci_bus_id>00000000:3B:00.0</pci_bus_id></pci>
  <clocks_event_reasons>
    <clocks_event_reason_gpu_idle>Active</clocks_event_reason_gpu_idle>
    <clocks_event_reason_sw_power_cap>Active</clocks_event_reason_sw_power_cap>
    <clocks_event_reason_hw_slowdown>Not Active</clocks_event_reason_hw_slowdown>
    <clocks_event_reason_hw_thermal_slowdown>Active</clocks_event_reason_hw_thermal_slowdown>
  </clocks_event_reasons>
  <fb_memory_usage><total>40960 MiB</total><reserved>567 MiB</reserved><used>38 MiB</used><free>40354 MiB</free>
  </fb_memory_usage>
  <utilization><gpu_util>N/A</gpu_util><memory_util>N/A</memory_util></utilization>
  <ecc_mode><current_ecc>Enabled</current_ecc><pending_ecc>Enabled</pending_ecc></ecc_mode>
  <ecc_errors>
    <volatile><sram_correctable>5</sram_correctable><sram_uncorrectable_parity>1</sram_uncorrectable_parity>
      <sram_uncorrectable_secded>0</sram_uncorrectable_secded><dram_correctable>7</dram_correctable>
      <dram_uncorrectable>2</dram_uncorrectable></volatile>
    <aggregate><dram_uncorrectable>9</dram_uncorrectable></aggregate>
  </ecc_errors>
  <retired_pages><pending_retirement>N/A</pending_retirement></retired_pages>
  <remapped_rows><remapped_row_pending>Yes</remapped_row_pending></remapped_rows>
  <temperature><gpu_temp>45 C</gpu_temp><gpu_temp_slow_threshold>89 C</gpu_temp_slow_threshold></temperature>
  <gpu_power_readings><power_state>P0</power_state><average_power_draw>N/A</average_power_draw>
    <instant_power_draw>54.20 W</instant_power_draw><current_power_limit>400.00 W</current_power_limit>
  </gpu_power_readings>
  <processes>
    <process_info><pid>812</pid><type>C</type><process_name>/usr/bin/ollama</process_name>
      <used_memory>3024 MiB</used_memory></process_info>
    <process_info><pid>900</pid><type>G</type><process_name>Xorg</process_name><used_memory>4 MiB</used_memory>
    </process_info>
    <process_info><pid>901</pid><type>C+G</type><process_name>both</process_name><used_memory>N/A</used_memory>
    </process_info>
  </processes>
</gpu>
"""
GPU_535 = """
<gpu id="00000000:01:00.0">
  <product_name>Tesla V100-PCIE-32GB</product_name><persistence_mode>Disabled</persistence_mode>
  <mig_mode><current_mig>N/A</current_mig><pending_mig>N/A</pending_mig></mig_mode><mig_devices>None</mig_devices>
  <uuid>GPU-10000000-0000-4000-8000-000000000001</uuid>
  <clocks_throttle_reasons>
    <clocks_throttle_reason_hw_slowdown>Active</clocks_throttle_reason_hw_slowdown>
  </clocks_throttle_reasons>
  <fb_memory_usage><total>32768 MiB</total><used>1 MiB</used></fb_memory_usage>
  <utilization><gpu_util>3 %</gpu_util></utilization>
  <ecc_mode><current_ecc>Disabled</current_ecc></ecc_mode>
  <ecc_errors><volatile><single_bit><total>4</total></single_bit><double_bit><total>1</total></double_bit></volatile>
  </ecc_errors>
  <retired_pages><pending_retirement>No</pending_retirement></retired_pages><remapped_rows>N/A</remapped_rows>
  <temperature><gpu_temp>33 C</gpu_temp></temperature>
  <power_readings><power_draw>25.00 W</power_draw><enforced_power_limit>250.00 W</enforced_power_limit></power_readings>
  <processes></processes>
</gpu>
"""
LISTING = """
GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-a100aaaa-0000-4000-8000-000000000000)
  MIG 3g.20gb     Device  0: (UUID: MIG-a100aaaa-0000-5000-8000-000000000001)
  MIG 4g.20gb     Device  1: (UUID: MIG-a100aaaa-0000-5000-8000-000000000002)
GPU 1: Tesla V100-PCIE-32GB (UUID: GPU-10000000-0000-4000-8000-000000000001)
"""


def log(*gpus: str) -> str:
    """Return nvidia-smi's document of some GPUs."""
    versions = "<driver_version>550.163.01</driver_version><cuda_version>12.4</cuda_version>"
    return f"{HEAD}<nvidia_smi_log>{versions}<attached_gpus>{len(gpus)}</attached_gpus>{''.join(gpus)}</nvidia_smi_log>"


def test_two_generations_of_cards_and_of_nvidia_smi() -> None:
    found = parse(log(GPU_550, GPU_535) + LISTING)
    assert (found.source, found.error, found.driver_version, found.cuda_version) == (
        "nvidia-smi",
        "",
        "550.163.01",
        "12.4",
    )
    ampere, volta = found.gpus
    assert ampere.model_dump() == {
        "index": 0,
        "uuid": "GPU-a100aaaa-0000-4000-8000-000000000000",
        "name": "NVIDIA A100-SXM4-40GB",
        "address": "0000:3b:00.0",
        "memory_total_bytes": 40960 * MIB,
        "memory_used_bytes": 38 * MIB,
        "utilization_percent": None,
        "temperature_celsius": 45,
        "temperature_slowdown_celsius": 89,
        "power_watts": 54.2,
        "power_limit_watts": 400,
        "throttle_reasons": ("sw_power_cap", "hw_thermal_slowdown"),
        "ecc_enabled": True,
        "ecc_uncorrected": 3,
        "pending_row_remap": True,
        "persistence": True,
        "mig_enabled": True,
        "mig": (
            MigInstance(
                profile="3g.20gb", uuid="MIG-a100aaaa-0000-5000-8000-000000000001", memory_bytes=19968 * MIB
            ).model_dump(),
            MigInstance(
                profile="4g.20gb", uuid="MIG-a100aaaa-0000-5000-8000-000000000002", memory_bytes=19968 * MIB
            ).model_dump(),
        ),
        "nvlinks_active": None,
        "processes": (
            GpuProcess(pid=812, name="/usr/bin/ollama", memory_bytes=3024 * MIB).model_dump(),
            GpuProcess(pid=901, name="both").model_dump(),
        ),
        "error": "",
    }
    assert (volta.index, volta.address, volta.utilization_percent) == (1, "0000:01:00.0", 3)
    assert (volta.power_watts, volta.power_limit_watts, volta.throttle_reasons) == (25, 250, ("hw_slowdown",))
    assert (volta.ecc_enabled, volta.ecc_uncorrected, volta.pending_row_remap) == (False, 1, False)
    assert (volta.mig_enabled, volta.mig, volta.persistence) == (None, (), False)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (
            "Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 550.163\n",
            "Driver/library version mismatch",
        ),
        (
            "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure ...\n",
            "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure ...",
        ),
        ("", "nvidia-smi printed nothing"),
        (log("<gpu>"), "unreadable answer of nvidia-smi: mismatched tag: line 3, column 131"),
    ],
)
def test_what_it_says_instead_of_an_answer(text: str, error: str) -> None:
    assert parse(text) == NvmlReport(source="nvidia-smi", error=error)


def test_a_lost_gpu_says_so() -> None:
    [gpu] = parse(log('<gpu id="00000000:01:00.0"><product_name>GPU is lost</product_name></gpu>')).gpus
    assert (gpu.error, gpu.name, gpu.address) == ("GPU is lost", "", "0000:01:00.0")


def test_entity_bombs_are_refused_at_once() -> None:
    entities = '<!ENTITY a0 "ha">' + "".join(f'<!ENTITY a{n + 1} "{f"&a{n};" * 10}">' for n in range(9))
    document = log("&a9;").replace('SYSTEM "nvsmi_device_v12.dtd"', f"[{entities}]")
    began = time.monotonic()
    assert parse(document).error == (
        "unreadable answer of nvidia-smi: it declares entities, which nvidia-smi never does"
    )
    assert time.monotonic() - began < 1


def test_deep_nesting_is_survived() -> None:
    assert parse(log("<gpu>" * 100_000 + "</gpu>" * 100_000)).source == "nvidia-smi"


TAGS = (
    *("gpu", "uuid", "mig_devices", "mig_device", "index", "fb_memory_usage", "total", "processes", "process_info"),
    *("pid", "type", "ecc_errors", "volatile", "dram_uncorrectable", "uncorrectable.x:y", "temperature", "gpu_temp"),
    *("nvidia_smi_log", "error_string"),
)
TEXTS = ("N/A", "45 C", "12 MiB", "-1", "1e9", "9" * 40, "Enabled", "&lt;", "GPU is lost")
XML = st.recursive(
    st.text() | st.sampled_from(TEXTS),
    lambda inner: st.builds("<{0}>{1}</{0}>".format, st.sampled_from(TAGS), st.lists(inner, max_size=4).map("".join)),
)


@given(st.lists(XML).map("".join))
def test_no_document_breaks_the_parser(body: str) -> None:
    assert parse(f"<nvidia_smi_log>{body}</nvidia_smi_log>").source == "nvidia-smi"


@given(st.lists(st.text() | st.sampled_from(["{", '{"source": 1}', "Traceback", "</nvidia_smi_log>", "[]"])))
def test_no_output_breaks_the_fact(lines: list[str]) -> None:
    assert isinstance(Nvml().process(lines), NvmlReport)


def test_no_output_is_no_driver() -> None:
    assert Nvml().process([]) == Nvml.default() == NvmlReport(source="none")
