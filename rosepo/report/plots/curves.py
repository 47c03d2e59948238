"""What the logs of training show: loss, rewards and hits over steps, as pictures and as the figures at the end."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from rosepo.report.cells import Cell, Table
from rosepo.report.plots.svg import DARK, svg
from rosepo.report.text.format import number
from rosepo.report.text.labels import COLOURS
from rosepo.run.paths import RunPaths

Lines = Sequence[tuple[str, list[float], list[float]]]
"""Label, x and y."""

_PICTURES: tuple[tuple[str, str, dict[str, str]], ...] = (
    ("loss a {unit}", "loss", {"loss": "training", "validation_loss": "validation"}),
    (
        "loss above the least that its targets allow",
        "nats",
        {"target_kl": "training", "validation_target_kl": "validation"},
    ),
    ("reward margin, chosen − rejected", "margin", {"margin": "training", "validation_margin": "validation"}),
    ("pairs in the right order", "share", {"accuracy": "training", "validation_accuracy": "validation"}),
    ("held-out users", "HR@10, NDCG@10", {"hr@10": "HR@10", "ndcg@10": "NDCG@10"}),
)
"""Title, y axis, and the label of each line by its key."""
_COLUMNS = {
    "loss": "Loss",
    "validation_loss": "Validation loss",
    "target_kl": "Above its least",
    "validation_target_kl": "Validation, above its least",
    "margin": "Reward margin",
    "accuracy": "Reward accuracy",
    "hr@10": "HR@10",
    "ndcg@10": "NDCG@10",
}


@dataclass(frozen=True)
class _Log:
    """What a training has logged, a row a step (of the oracle: an epoch); `unit`: what its loss is a mean over."""

    title: str
    rows: list[dict[str, Any]]
    colour: str
    unit: str
    x: str = "step"

    def series(self, key: str) -> tuple[list[float], list[float]]:
        """Steps and values; empty where there are none, or where it is the loss once more: under one-hot targets the
        least that it can be is 0."""
        rows = [row for row in self.rows if key in row]
        if key.endswith("target_kl"):
            loss = key.replace("target_kl", "loss")
            if all(math.isclose(row[key], row.get(loss, math.nan), rel_tol=1e-5) for row in rows):
                return [], []
        return [row["step"] for row in rows], [row[key] for row in rows]


def pictures(paths: RunPaths) -> list[tuple[str, str]]:
    """Title and SVG of every curve that was logged."""
    found = []
    for log in _logs(paths):
        for title, ylabel, labels in _PICTURES:
            lines = [(label, *log.series(key)) for key, label in labels.items() if log.series(key)[0]]
            if lines:
                picture = _curves(lines, (log.colour, DARK), log.x, ylabel)
                found.append((f"{log.title}: {title.format(unit=log.unit)}", picture))
    return found


def ends(paths: RunPaths) -> Table | None:
    """First and last value of every curve that was logged, a row a training; None where nothing was."""
    logs = _logs(paths)
    keys = [key for key in _COLUMNS if any(log.series(key)[0] for log in logs)]
    if not keys:
        return None
    rows = [
        [Cell(log.title), Cell(f"{log.rows[-1]['step']:,}"), *(_end(log.series(key)[1]) for key in keys)]
        for log in logs
    ]
    note = "Last value, and below it the first one that was logged. Steps of an oracle are epochs."
    return Table(("Training", "Steps", *(_COLUMNS[key] for key in keys)), rows, note=note)


def _logs(paths: RunPaths) -> list[_Log]:
    """Those that are there: of fine-tuning, of every round of alignment, and of the oracle."""
    found = [_Log("Fine-tuning", _read(paths.sft), COLOURS["sft"], "title")]
    for one in paths.rounds:
        title = f"Alignment, round {one.round}" if paths.round > 1 else "Alignment"
        found.append(_Log(title, _read(one.aligned), COLOURS["aligned"], "group"))
    found.append(_Log("Oracle", _read(paths.oracle), COLOURS["oracle"], "title", "epoch"))
    return [log for log in found if log.rows]


def _read(folder: Path) -> list[dict[str, Any]]:
    path = folder / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [json.loads(line) for line in lines if line.strip()]


def _end(values: Sequence[float]) -> Cell:
    shown = [number(value) if math.isfinite(value) else str(value) for value in values]
    return Cell(shown[-1], f"from {shown[0]}" if len(shown) > 1 else "") if shown else Cell("–")


def _curves(lines: Lines, colours: Sequence[str], xlabel: str, ylabel: str) -> str:
    """Points are marked where they are few."""

    def draw(axes: Axes) -> None:
        for (label, x, y), colour in zip(lines, colours):
            axes.plot(x, y, color=colour, lw=1.8, marker="o" if len(x) < 25 else None, ms=3.5, label=label)
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.grid(axis="y")
        if len(lines) > 1:
            axes.legend(loc="best")

    return svg(draw, height=2.7)
