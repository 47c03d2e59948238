"""What every benchmark uses: rows of results, measuring two things side by side, the table and the JSON file."""

from __future__ import annotations

import gc
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

REPEATS, QUICK_REPEATS = 5, 3
_KEYS = ("name", "value", "unit", "rival", "rival_value", "ratio")


@dataclass(frozen=True)
class Row:
    """One result.

    Attributes:
        name: as `--only` takes it.
        value: rosepo's figure, in `unit`.
        rival: who was measured beside it; empty where there is none.
        rival_value: the rival's figure, in the same unit.
        ratio: above 1 rosepo is better, whichever way the unit points.
        note: sizes and conditions, for the table alone.
    """

    name: str
    value: float
    unit: str
    rival: str
    rival_value: float | None
    ratio: float | None
    note: str = ""


class Pair(NamedTuple):
    """Median seconds of two things that were measured side by side."""

    ours: float
    rival: float


def side_by_side(ours: Callable[[], Any], rival: Callable[[], Any], quick: bool = False, warm_up: bool = True) -> Pair:
    """Median seconds of each call, measured in turns (ours, rival, ours, rival, …), so that a slow minute hits both.

    Args:
        ours, rival: called without arguments, each doing the same whole task.
        quick: three turns instead of five.
        warm_up: call each once before, untimed; off where the caller has called both already.
    """
    if warm_up:
        ours(), rival()
    taken: tuple[list[float], list[float]] = ([], [])
    for _ in range(QUICK_REPEATS if quick else REPEATS):
        for call, seconds in zip((ours, rival), taken, strict=True):
            gc.collect()
            start = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - start)
    return Pair(statistics.median(taken[0]), statistics.median(taken[1]))


def rate_row(name: str, unit: str, rival: str, amount: float, pair: Pair, note: str = "") -> Row:
    """A row for `amount` units of work done in the seconds of `pair`, both given a second."""
    return Row(name, amount / pair.ours, unit, rival, amount / pair.rival, pair.rival / pair.ours, note)


def table(rows: Sequence[Row], targets: Mapping[str, float]) -> str:
    """The rows as text, each ratio beside its target ratio."""
    lines = [("row", "rosepo", "rival", "unit", "ratio", "target", "", "rival is", "note")]
    for row in rows:
        target = targets.get(row.name)
        verdict = "" if target is None or row.ratio is None else ("met" if row.ratio >= target else "MISSED")
        figures = (
            _figure(row.value),
            _figure(row.rival_value),
            row.unit,
            _figure(row.ratio, "x"),
            _figure(target, "x"),
        )
        lines.append((row.name, *figures, verdict, row.rival, row.note))
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines)


def write_json(path: Path, rows: Sequence[Row]) -> None:
    """The rows without their notes as a JSON list, written aside and renamed."""
    aside = path.with_name(f".{path.name}.tmp")
    aside.write_text(json.dumps([{key: asdict(row)[key] for key in _KEYS} for row in rows], indent=1) + "\n")
    aside.replace(path)


def _figure(value: float | None, mark: str = "") -> str:
    return "-" if value is None else f"{value:,.{2 if abs(value) < 100 else 0}f}{mark}"
