"""What the logs of training show: loss, rewards and hits over steps, as pictures and as the figures at the end."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from rosepo.report.cells import Cell, Table
from rosepo.report.plots.svg import DARK, svg
from rosepo.report.text.format import number
from rosepo.report.training_logs import logs_of
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


def pictures(paths: RunPaths) -> list[tuple[str, str]]:
    """Title and SVG of every curve that was logged."""
    found = []
    for log in logs_of(paths):
        for title, ylabel, labels in _PICTURES:
            lines = [(label, *log.series(key)) for key, label in labels.items() if log.series(key)[0]]
            if lines:
                picture = _curves(lines, (log.colour, DARK), log.x, ylabel)
                found.append((f"{log.title}: {title.format(unit=log.unit)}", picture))
    return found


def ends(paths: RunPaths) -> Table | None:
    """First and last value of every curve that was logged, a row a training; None where nothing was."""
    logs = logs_of(paths)
    keys = [key for key in _COLUMNS if any(log.series(key)[0] for log in logs)]
    if not keys:
        return None
    rows = [
        [Cell(log.title), Cell(f"{log.rows[-1]['step']:,}"), *(_end(log.series(key)[1]) for key in keys)]
        for log in logs
    ]
    note = "Last value, and below it the first one that was logged. Steps of an oracle are epochs."
    return Table(("Training", "Steps", *(_COLUMNS[key] for key in keys)), rows, note=note)


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
