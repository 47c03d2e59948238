"""What a run cost: time, tokens and memory of every stage, from the manifests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rosepo.report.tables import Cell, Table
from rosepo.run.stages import seconds_in_all
from rosepo.utils.console import duration

NOTE = (
    "Time is that of the clock. Tokens: what the language model was trained on, every prompt and title once however "
    "many rows share it (sft, align), and the prompts that rejected titles were drawn for (pairs); those of the other "
    "stages are not counted. Peak memory: the most that the command and all processes that it started on this "
    "machine (Ray's own among them) held at once, looked at up to twice a second, shared pages counted once; where "
    "Ray was running before, or workers are on other machines, that of the command or of its largest training worker "
    "alone."
)
STREAMED = " Stages that ran at the same time (pairs.stream) count each other's memory."


@dataclass(frozen=True)
class Cost:
    """Of one stage: seconds, tokens of the language model (None: not counted), bytes (None: not known)."""

    name: str
    seconds: float
    tokens: int | None
    memory: int | None
    processes: int | None = None
    gpu_memory: int | None = None


def costs_of(manifests: Mapping[str, Mapping[str, Any]]) -> list[Cost]:
    """One a stage, in the order of `manifests`."""
    found = []
    for name, manifest in manifests.items():
        figures = manifest.get("figures", {})
        tokens = figures.get("tokens", figures.get("prompt_tokens"))
        memory = (manifest.get(key) for key in ("peak_memory", "processes", "peak_gpu_memory"))
        found.append(Cost(name, float(manifest["seconds"]), tokens, *memory))
    return found


def total_of(manifests: Mapping[str, Mapping[str, Any]]) -> Cost:
    """Of all stages: their time (once for those that ran together), the tokens of all, the highest memory."""
    costs = costs_of(manifests)
    tokens = [cost.tokens for cost in costs if cost.tokens is not None]
    memory = [cost.memory for cost in costs if cost.memory is not None]
    on_gpu = [cost.gpu_memory for cost in costs if cost.gpu_memory is not None]
    return Cost(
        "all",
        seconds_in_all(manifests),
        sum(tokens) if tokens else None,
        max(memory, default=None),
        gpu_memory=max(on_gpu, default=None),
    )


def cost_table(manifests: Mapping[str, Mapping[str, Any]]) -> Table:
    """Stages against time, tokens and memory."""
    total = total_of(manifests)
    streamed = any(manifest.get("figures", {}).get("streamed") for manifest in manifests.values())
    rows = []
    for cost in costs_of(manifests):
        share = cost.seconds / total.seconds if total.seconds else 0.0
        processes = "" if cost.processes is None else f"{cost.processes} process{'' if cost.processes == 1 else 'es'}"
        rows.append([Cell(cost.name), Cell(duration(cost.seconds), share=share), *_cells(cost, processes)])
    rows.append([Cell("all", strong=True), Cell(duration(total.seconds), strong=True), *_cells(total, "")])
    return Table(("Stage", "Time", "Tokens", "Peak memory"), rows, note=NOTE + (STREAMED if streamed else ""))


def amount(n_bytes: int | None) -> str:
    """`812 MiB`, `1.4 GiB`; a dash for what is not known."""
    if n_bytes is None:
        return "–"
    mib = n_bytes / 2**20
    return f"{mib:,.0f} MiB" if mib < 1000 else f"{mib / 1024:,.1f} GiB"


def _cells(cost: Cost, below: str) -> tuple[Cell, Cell]:
    tokens = "–" if cost.tokens is None else f"{cost.tokens:,}"
    on_gpu = "" if cost.gpu_memory is None else f"{amount(cost.gpu_memory)} on a GPU"
    return Cell(tokens), Cell(amount(cost.memory), ", ".join(each for each in (below, on_gpu) if each))
