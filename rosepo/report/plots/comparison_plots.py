"""Pictures of several runs, each an SVG text: a run has a letter and a colour, which are the same in all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from rosepo.report.plots.svg import or_zero, svg
from rosepo.report.text.format import measured
from rosepo.report.text.labels import short

RUN_COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a4fa3", "#8b5a2b", "#4d6b00")

Point = tuple[Mapping[str, Any], Mapping[str, Any] | None]
"""Figures of a run's model and of the SFT model before it."""


def run_colours(marks: Sequence[str]) -> dict[str, str]:
    """A colour for every run of a comparison, by mark; they come again where there are many, the letters do not."""
    return {mark: RUN_COLOURS[place % len(RUN_COLOURS)] for place, mark in enumerate(marks)}


def by_run(titles: Mapping[str, str], points: Mapping[str, Point], metric: str) -> str:
    """One row a run: its model with the 95 % interval, filled, and the SFT model that it went on from, hollow.

    Args:
        titles: of the runs, by mark.
        points: by mark, the figures of both models (None: no SFT model).
    """

    def draw(axes: Axes) -> None:
        colours = run_colours(list(titles))
        for row, mark in enumerate(titles):
            figure, before = points[mark]
            if before is not None:
                if measured(before):
                    axes.plot([before["low"], before["high"]], [row + 0.22] * 2, color="#bbbbbb", lw=1.2)
                axes.plot(or_zero(before["value"]), row + 0.22, "o", ms=5, color="#777777", mfc="white", mew=1.2)
            if measured(figure):
                ends = [figure["low"], figure["high"]]
                axes.plot(ends, [row - 0.08] * 2, color=colours[mark], lw=2.2, solid_capstyle="butt")
            axes.plot(or_zero(figure["value"]), row - 0.08, "o", ms=7, color=colours[mark])
        axes.set_yticks(range(len(titles)), [short(title) for title in titles.values()])
        axes.set_ylim(len(titles) - 0.4, -0.6)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.grid(axis="x", color="#eeeeee")
        axes.set_axisbelow(True)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel(f"{metric.upper()} (hollow: SFT, before)")

    return svg(draw, height=0.8 + 0.38 * len(titles))


def tradeoff(
    titles: Mapping[str, str], x: Mapping[str, Point], y: Mapping[str, Point], truth: float | None, ylabel: str
) -> str:
    """Accuracy over mean log-popularity, a point with intervals a run, and a thin line to it from its SFT model.

    Args:
        titles, x, y: as for `by_run`.
        truth: mean log-popularity of what people chose; None is not drawn.
    """

    def draw(axes: Axes) -> None:
        colours = run_colours(list(titles))
        if truth is not None:
            axes.axvline(truth, color="#222222", lw=1.1, ls="--")
        for mark in titles:
            (a, a_before), (b, b_before) = x[mark], y[mark]
            at, height = or_zero(a["value"]), or_zero(b["value"])
            if a_before is not None and b_before is not None:
                start, level = or_zero(a_before["value"]), or_zero(b_before["value"])
                axes.plot([start, at], [level, height], color=colours[mark], lw=0.9, alpha=0.7)
                axes.plot(start, level, "o", ms=5, color="#777777", mfc="white", mew=1.2)
            if measured(a):
                axes.plot([a["low"], a["high"]], [height] * 2, color=colours[mark], lw=1.1, alpha=0.6)
            if measured(b):
                axes.plot([at] * 2, [b["low"], b["high"]], color=colours[mark], lw=1.1, alpha=0.6)
            axes.plot(at, height, "o", ms=8, color=colours[mark])
            axes.annotate(mark, (at, height), (6, 5), textcoords="offset points", fontsize=10, fontweight="bold")
        axes.margins(0.1)
        axes.grid(color="#eeeeee")
        axes.set_axisbelow(True)
        axes.set_xlabel("mean log-popularity" + (" (dashed: what people chose)" if truth is not None else ""))
        axes.set_ylabel(ylabel)

    return svg(draw, height=3.4)
