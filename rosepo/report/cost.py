"""What a run cost: time, tokens and memory of every stage, from the manifests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from rosepo.report.cells import Cell, Table
from rosepo.run.stages import seconds_in_all
from rosepo.utils.console import duration

Manifests = Mapping[str, Mapping[str, Any]]
"""By stage."""
NOTE = (
    "Time is that of the clock. Tokens: what the language model was trained on, every prompt and title once however "
    "many rows share it (sft, align), and the prompts that rejected titles were drawn for (pairs); those of the other "
    "stages are not counted. Peak memory: the most that the command and all processes that it started on this "
    "machine (Ray's own among them) held at once, looked at up to twice a second, shared pages counted once; where "
    "Ray was running before, or workers are on other machines, that of the command or of its largest training worker "
    "alone."
)
COLUMNS = ("Time", "Tokens", "Peak memory")
STREAMED = " Stages that ran at the same time (pairs.stream) count each other's memory."


@dataclass(frozen=True)
class Cost:
    """Seconds, tokens of the language model (None: not counted), bytes (None: not known), and processes."""

    seconds: float
    tokens: int | None
    memory: int | None
    gpu_memory: int | None
    processes: int | None = None

    def cells(self, longest: float | None = None) -> list[Cell]:
        """Time (with a bar of its share of `longest` seconds), tokens and memory."""
        below = [f"{self.processes} process{'' if self.processes == 1 else 'es'}"] if self.processes else []
        below += [f"{amount(self.gpu_memory)} on a GPU"] if self.gpu_memory is not None else []
        return [
            Cell(duration(self.seconds), share=self.seconds / longest if longest else None),
            Cell("–" if self.tokens is None else f"{self.tokens:,}"),
            Cell(amount(self.memory), ", ".join(below)),
        ]


def costs_of(manifests: Manifests) -> dict[str, Cost]:
    """By stage."""
    found = {}
    for name, manifest in manifests.items():
        tokens = manifest["figures"].get("tokens", manifest["figures"].get("prompt_tokens"))
        memory = [manifest.get(key) for key in ("peak_memory", "peak_gpu_memory", "processes")]
        found[name] = Cost(float(manifest["seconds"]), tokens, *memory)
    return found


def total_of(manifests: Manifests) -> Cost:
    """Of all stages: their time (once for those that ran together), the tokens of all, the highest memory."""
    costs = costs_of(manifests).values()
    tokens, memory, on_gpu = (
        [value for cost in costs if (value := getattr(cost, name)) is not None]
        for name in ("tokens", "memory", "gpu_memory")
    )
    most = (max(values, default=None) for values in (memory, on_gpu))
    return Cost(seconds_in_all(manifests), sum(tokens) if tokens else None, *most)


def cost_table(manifests: Manifests) -> Table:
    """Stages against time, tokens and memory."""
    total = total_of(manifests)
    rows = [[Cell(name), *cost.cells(total.seconds)] for name, cost in costs_of(manifests).items()]
    rows.append([replace(cell, strong=True) for cell in (Cell("all"), *total.cells())])
    streamed = any(manifest["figures"].get("streamed") for manifest in manifests.values())
    return Table(("Stage", *COLUMNS), rows, note=NOTE + (STREAMED if streamed else ""))


def amount(n_bytes: int | None) -> str:
    """`812 MiB`, `1.4 GiB`; a dash for what is not known."""
    if n_bytes is None:
        return "–"
    mib = n_bytes / 2**20
    return f"{mib:,.0f} MiB" if mib < 1000 else f"{mib / 1024:,.1f} GiB"
