"""What the trainings of finished runs learnt, and when: pictures over minutes, and a table of looks at validation.

    python benchmarks/curves.py RUN… [--out FILE.svg] [--looks N]

Minutes are those of a training itself, without the start of its workers and without the stages before it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rosepo.report.plots.svg import svg
from rosepo.report.training_logs import TrainingLog, logs_of
from rosepo.run.paths import RunPaths

COLUMNS = {"validation_loss": "validation loss", "hr@10": "HR@10", "ndcg@10": "NDCG@10"}
HEADER = ("run", "training", "step", "minutes", *COLUMNS.values())


def looks(log: TrainingLog) -> list[dict[str, Any]]:
    """The lines of a training's log that hold a look at held-out users."""
    return [row for row in log.rows if "ndcg@10" in row]


def shown(rows: list[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    """At most so many of them: the first, the last, the best by NDCG@10, and others at even distances."""
    best = max(range(len(rows)), key=lambda place: rows[place]["ndcg@10"])
    even = {round(place * (len(rows) - 1) / max(most - 2, 1)) for place in range(most - 1)}
    return [rows[place] for place in sorted(even | {best})]


def table(runs: list[Path], most: int) -> str:
    """Markdown: a row for each look that is shown; the best of a training is bold."""
    lines = ["| " + " | ".join(HEADER) + " |", "|" + "---|" * len(HEADER)]
    for run in runs:
        for log in logs_of(RunPaths(run)):
            rows = looks(log)
            best = max((row["ndcg@10"] for row in rows), default=0.0)
            for row in shown(rows, most) if rows else []:
                cells = [run.name, log.title, f"{log.x} {row['step']:,}", f"{row['seconds'] / 60:.1f}"]
                cells += [f"{row[key]:.3f}".removeprefix("0") if key in row else "" for key in COLUMNS]
                cells[-1] = f"**{cells[-1]}**" if row["ndcg@10"] == best else cells[-1]
                lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def picture(runs: list[Path]) -> str:
    """A row of plots for each run, a column for each figure, a line for each training."""

    def draw(axes: Any) -> None:
        for run, row in zip(runs, axes, strict=True):
            for (key, label), plot in zip(COLUMNS.items(), row, strict=True):
                for log in logs_of(RunPaths(run)):
                    found = [(one["seconds"] / 60, one[key]) for one in looks(log) if key in one]
                    # The loss of alignment is another one than that of fine-tuning.
                    if found and not (key == "validation_loss" and log.section == "align"):
                        plot.plot(*zip(*found), color=log.colour, lw=1.8, marker="o", ms=2.5, label=log.title)
                plot.set_title(f"{run.name}: {label}", fontsize=11)
                plot.set_xlabel("minutes of training")
                plot.grid(axis="y")
            row[-1].legend(loc="lower right")

    size = {"nrows": len(runs), "ncols": len(COLUMNS), "squeeze": False}
    return svg(draw, height=2.6 * len(runs), width=11, opaque=True, **size)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of finished runs")
    parser.add_argument("--out", type=Path, help="where the picture goes")
    parser.add_argument("--looks", type=int, default=6, help="rows of a training in the table, about")
    given = parser.parse_args()
    print(table(given.runs, given.looks))
    if given.out is not None:
        given.out.write_text(picture(given.runs), encoding="utf-8")


if __name__ == "__main__":
    main()
