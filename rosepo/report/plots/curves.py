"""What the logs of training show: loss, rewards and hits over steps, as pictures and as the figures at the end."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rosepo.report.plots import run_plots
from rosepo.report.tables import Cell, Table
from rosepo.report.text.format import number
from rosepo.report.text.labels import COLOURS

if TYPE_CHECKING:
    from rosepo.run.paths import RunPaths

Rows = list[dict[str, Any]]

LOSS = "loss"
_DARK = "#222222"
_LINES = (
    (LOSS, "loss", (("loss", "training", ""), ("validation_loss", "validation", _DARK))),
    ("loss above the least that its targets allow", "nats",
     (("target_kl", "training", ""), ("validation_target_kl", "validation", _DARK))),
    ("reward margin, chosen − rejected", "margin",
     (("margin", "training", ""), ("validation_margin", "validation", _DARK))),
    ("pairs in the right order", "share",
     (("accuracy", "training", ""), ("validation_accuracy", "validation", _DARK))),
    ("held-out users", "HR@10, NDCG@10", (("hr@10", "HR@10", ""), ("ndcg@10", "NDCG@10", _DARK))),
)  # fmt: skip
"""Of `sft` and `align`: title, y axis, and the key, label and colour ('': the model's) of each line."""
_SHOWN = {
    "loss": "Loss",
    "validation_loss": "Validation loss",
    "target_kl": "Above its least",
    "validation_target_kl": "Validation, above its least",
    "margin": "Reward margin",
    "accuracy": "Reward accuracy",
    "hr@10": "HR@10",
    "ndcg@10": "NDCG@10",
}


def pictures(paths: RunPaths) -> list[tuple[str, str]]:
    """Title and SVG of every curve that was logged."""
    found = []
    for title, folder, colour, unit in _trainings(paths):
        rows = _lines(folder / "metrics.jsonl")
        for about, axis, wanted in _LINES if colour else ():
            drawn = [
                (name, shade or colour, *_xy(rows, key))
                for key, name, shade in wanted
                if _has(rows, key) and not _repeats_loss(rows, key)
            ]
            if drawn:
                told = f"loss a {unit}" if about == LOSS else about
                found.append((f"{title}: {told}", run_plots.curves(drawn, "step", axis)))
    rows = _lines(paths.oracle / "metrics.jsonl")
    wanted = (("hr@10", "HR@10", COLOURS["oracle"]), ("ndcg@10", "NDCG@10", _DARK))
    drawn = [(name, colour, *_xy(rows, key)) for key, name, colour in wanted if _has(rows, key)]
    if drawn:
        found.append(("Oracle: validation", run_plots.curves(drawn, "epoch", "HR@10, NDCG@10")))
    return found


def ends(paths: RunPaths) -> Table | None:
    """First and last value of every curve that was logged, a row a training; None where nothing was."""
    logs = {title: _lines(folder / "metrics.jsonl") for title, folder, *_ in _trainings(paths)}
    logs = {title: rows for title, rows in logs.items() if rows}
    keys = [key for key in _SHOWN if any(_has(rows, key) and not _repeats_loss(rows, key) for rows in logs.values())]
    if not keys:
        return None
    cells = [[Cell(title), Cell(f"{rows[-1]['step']:,}"), *(_end(rows, key) for key in keys)]
             for title, rows in logs.items()]  # fmt: skip
    header = ("Training", "Steps", *(_SHOWN[key] for key in keys))
    return Table(
        header, cells, note="Last value, and below it the first one that was logged. Steps of an oracle are epochs."
    )


def _trainings(paths: RunPaths) -> list[tuple[str, Path, str, str]]:
    """Title, folder, colour and unit of the loss: of fine-tuning, of every round of alignment, and of the oracle, which
    has curves of its own (no colour)."""
    several = paths.round > 1
    rounds = [
        (f"Alignment{f', round {one.round}' if several else ''}", one.aligned, COLOURS["aligned"], "group")
        for one in paths.rounds
    ]
    return [("Fine-tuning", paths.sft, COLOURS["sft"], "title"), *rounds, ("Oracle", paths.oracle, "", "")]


def _end(rows: Rows, key: str) -> Cell:
    found = [row[key] for row in rows if key in row]
    if not found:
        return Cell("–")
    first, last = _logged(found[0]), _logged(found[-1])
    return Cell(last, f"from {first}" if len(found) > 1 else "")


def _logged(value: float) -> str:
    return number(value) if math.isfinite(value) else str(value)


def _has(rows: Rows, key: str) -> bool:
    return any(key in row for row in rows)


def _repeats_loss(rows: Rows, key: str) -> bool:
    """Whether it is the loss once more: under one-hot targets the least is 0."""
    if not key.endswith("target_kl"):
        return False
    loss = key.replace("target_kl", LOSS)
    return all(math.isclose(row[key], row.get(loss, math.nan), rel_tol=1e-5) for row in rows if key in row)


def _xy(rows: Rows, key: str) -> tuple[Sequence[float], Sequence[float]]:
    chosen = [row for row in rows if key in row]
    return [row["step"] for row in chosen], [row[key] for row in chosen]


def _lines(path: Path) -> Rows:
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
