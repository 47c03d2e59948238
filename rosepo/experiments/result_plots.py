"""The picture of a data set's results: how far every system is from the first one that all are compared to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from rosepo.experiments.result_tables import LABELS, base_of, file_name
from rosepo.report.plots.svg import STYLE, text_of
from rosepo.report.text.format import sign
from rosepo.report.text.labels import short
from rosepo.utils.files import write_text

DRAWN = ("ndcg@10", "hr@10", "log_popularity")
"""A column each."""
LEFT_OUT = ("popular", "markov")
"""Baselines so far from all others that these would not be told apart."""
_ACCURACY = ("ndcg@10", "hr@10")
_UP, _DOWN, _LEVEL = "#0072b2", "#d55e00", "#777777"


def write_pictures(results: Mapping[str, Any], out: Path) -> None:
    """The picture of every data set and split of `results.json`, beside it, where there is something to compare."""
    for data, splits in results["data"].items():
        for split, section in splits.items():
            if (base := base_of(section)) is not None:
                write_text(out / file_name(data, split), differences(section, base))


def differences(section: Mapping[str, Any], base: str) -> str:
    """Paired differences to `base` with 95 % intervals as SVG text, a row a system and a column a metric.

    Args:
        section: of a data set and a split in `results.json`, with `base` among the keys of `against`.

    Filled where the interval is clear of zero; blue and orange say better and worse in the columns of accuracy.
    """
    against = section["against"][base]
    systems = {name: figures for name, figures in against.items() if figures is not None and name not in LEFT_OUT}
    with rc_context(STYLE):
        figure = Figure(figsize=(10.0, 1.0 + 0.3 * len(systems)), layout="constrained")
        columns = figure.subplots(1, len(DRAWN), sharey=True)
        for axes, metric in zip(columns, DRAWN):
            _column(axes, metric, [figures.get(metric) for figures in systems.values()], base)
        columns[0].set_yticks(range(len(systems)), [short(name, 28) for name in systems])
        columns[0].set_ylim(len(systems) - 0.4, -0.6)
        return text_of(figure, transparent=False)


def _column(axes: Axes, metric: str, figures: Sequence[Mapping[str, Any] | None], base: str) -> None:
    axes.axvline(0, color="#999999", lw=1)
    for row, figure in enumerate(figures):
        if figure is None or figure["low"] is None:
            continue
        clear = sign(figure)
        colour = {1: _UP, -1: _DOWN, 0: _LEVEL}[clear if metric in _ACCURACY else 0]
        axes.plot([figure["low"], figure["high"]], [row, row], color=colour, lw=2.2, solid_capstyle="butt")
        axes.plot(figure["value"], row, "o", ms=6.5, color=colour, mfc=colour if clear else "white", mew=1.5)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+g}".replace("-", "−") if value else "0"))
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", color="#eeeeee")
    axes.set_axisbelow(True)
    axes.set_xlabel(f"{LABELS[metric]} − that of {base}")
