"""Plans for people and for programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gpurack.capacity.placement import Placement
from gpurack.capacity.plan import HostPlan, ModelPlan, Verdict, gib
from gpurack.capacity.recommend import Recommendation, comparison

SCHEMA = "gpurack.capacity/1"
STYLES = {Verdict.FITS: "green", Verdict.FITS_WITH: "yellow", Verdict.DOES_NOT_FIT: "red", Verdict.UNKNOWN: "red"}
COLUMNS = ("model", "quant", "weights", "context", "cache", "buffers", "on GPUs", "in RAM", "verdict")


def show(plan: HostPlan, console: Console) -> None:
    """Print a host's plan."""
    hardware = plan.situation.hardware
    kinds = Counter(f"{device.name} {gib(device.memory_bytes)}" for device in hardware.devices)
    cards = ", ".join(f"{count} x {kind}" for kind, count in kinds.items()) or "no GPU"
    disk = "" if hardware.disk_bytes is None else f", {gib(hardware.disk_bytes)} of disk free"
    console.print(f"{plan.host} ({hardware.source}): {cards}; {gib(hardware.ram_bytes)} of RAM{disk}", markup=False)
    if not plan.models:
        console.print("  no models are declared (ollama_models.models)", markup=False)
        return
    table = Table(box=None, pad_edge=False)
    for column in COLUMNS:
        table.add_column(column, overflow="fold")
    for model in plan.models:
        row = _row(model)
        table.add_row(
            *(Text(row.get(column, "")) for column in COLUMNS[:-1]), Text(row["verdict"], STYLES[model.verdict])
        )
    console.print(table)
    for model in plan.models:
        for line in _details(model):
            console.print(f"  {model.wanted.name}: {line}", markup=False, highlight=False, soft_wrap=True)
    known = hardware.disk_bytes is not None
    console.print(f"  disk: {gib(plan.disk_needed)} to come{'' if known else '; free disk is not known'}", markup=False)
    for line in plan.disk_reasons:
        console.print(f"  disk: {line}", style="red", markup=False, soft_wrap=True)


def _row(model: ModelPlan) -> dict[str, str]:
    row = {"model": model.wanted.name, "verdict": model.verdict.value}
    if model.load is None or model.placement is None:
        return row
    load, placement = model.load, model.placement
    run = load.run
    cpu = f"{placement.cpu_layers} layers " if placement.cpu_layers else ""
    return row | {
        "quant": load.profile.file_type,
        "weights": gib(load.weights),
        "context": f"{run.context} x {run.parallel}",
        "cache": f"{gib(load.cache)} {run.cache_type}" if load.cache else "none",
        "buffers": gib(load.graph),
        "on GPUs": _split(placement),
        "in RAM": f"{cpu}{gib(placement.ram_bytes)}",
    }


def _split(placement: Placement) -> str:
    """Return the layers and bytes on each GPU; of many GPUs, the smallest and the largest share."""
    used = [pair for pair in zip(placement.gpu_layers, placement.gpu_bytes, strict=True) if pair[0]]
    if len(used) <= 2:
        return " + ".join(f"{layers} layers {gib(taken)}" for layers, taken in used) or "-"
    shares = sorted(taken for _, taken in used)
    return f"{sum(placement.gpu_layers)} layers on {len(used)} GPUs, {gib(shares[0])} to {gib(shares[-1])} each"


def _details(model: ModelPlan) -> list[str]:
    lines = list(model.reasons)
    if model.changes:
        lines.append(f"fits with {model.changes[0]}")
        lines += [f"or with {change}" for change in model.changes[1:]]
    profile = model.wanted.profile
    return [*lines, *([f"note: {profile.note}"] if profile and profile.note else [])]


def show_recommendation(found: Recommendation, console: Console) -> None:
    """Print a recommendation."""
    console.print(
        f"  for {found.people} people, {found.parallel} at once, {found.context} tokens each: "
        f"{found.name or 'no model'} ({found.note})",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def show_comparison(console: Console) -> None:
    """Print the sources' planning table beside own figures."""
    table = Table(
        box=None, pad_edge=False, title="deepseek-r1: sources' least memory, and own figures", title_justify="left"
    )
    for column in ("size", "sources", "card", "own, Q4_K_M", "own, F16"):
        table.add_column(column, overflow="fold")
    for row in comparison():
        table.add_row(row.size, row.source_memory, row.source_card, gib(row.four_bit), gib(row.half))
    console.print(table)
    console.print("own: one GPU, 4096 tokens, one request, buffers and CUDA included, reserves not", markup=False)


def as_json(
    plans: Sequence[HostPlan], errors: dict[str, str], recommendations: dict[str, Recommendation]
) -> dict[str, Any]:
    """Return plans as JSON's types; bytes everywhere."""
    hosts: list[dict[str, Any]] = [{"host": host, "error": error} for host, error in errors.items()]
    for plan in plans:
        hardware = plan.situation.hardware
        hosts.append(
            {
                "host": plan.host,
                "error": "",
                "fits": plan.ok,
                "hardware": {
                    "source": hardware.source,
                    "gpus": [device.model_dump() for device in hardware.devices],
                    "ram_bytes": hardware.ram_bytes,
                    "disk_bytes": hardware.disk_bytes,
                },
                "models": [_model(model) for model in plan.models],
                "disk_needed_bytes": plan.disk_needed,
                "disk_reasons": list(plan.disk_reasons),
                "recommendation": vars(recommendations[plan.host]) if plan.host in recommendations else None,
            }
        )
    return {"schema": SCHEMA, "hosts": hosts, "planning_table": [vars(row) for row in comparison()]}


def _model(model: ModelPlan) -> dict[str, Any]:
    plain: dict[str, Any] = {
        "name": model.wanted.name,
        "verdict": model.verdict.value,
        "reasons": list(model.reasons),
        "changes": list(model.changes),
        "resident": model.wanted.resident,
    }
    if model.load is None or model.placement is None:
        return plain
    load, placement = model.load, model.placement
    return plain | {
        "file_type": load.profile.file_type,
        "source": load.profile.source,
        "note": load.profile.note,
        "weights_bytes": load.weights,
        "cache_bytes": load.cache,
        "cache_type": load.run.cache_type,
        "context": load.run.context,
        "parallel": load.run.parallel,
        "flash_attention": load.run.flash_attention,
        "buffer_bytes": load.graph,
        "gpu_layers": list(placement.gpu_layers),
        "gpu_bytes": list(placement.gpu_bytes),
        "cpu_layers": placement.cpu_layers,
        "ram_bytes": placement.ram_bytes,
    }
