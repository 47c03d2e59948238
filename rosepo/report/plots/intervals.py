"""Pictures of figures with their 95 % intervals: of one run's models, and of several runs or variants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from rosepo.report.plots.svg import DARK, GREY, LIGHT, ROUND, WIDTH, or_zero, svg
from rosepo.report.text.format import Figure, digits_of, measured, number, sign
from rosepo.report.text.labels import colours_of, short

RUN_COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a4fa3", "#8b5a2b", "#4d6b00")
BETTER_OR_WORSE = {1: "#0072b2", -1: "#d55e00", 0: GREY}

Point = tuple[Figure, Figure | None]
"""A figure of a run's model, and that of the SFT model before it; None where there is none."""


def run_colours(marks: Sequence[str]) -> dict[str, str]:
    """A colour for every run of a comparison, by mark; they come again where there are many, the letters do not."""
    return {mark: RUN_COLOURS[place % len(RUN_COLOURS)] for place, mark in enumerate(marks)}


def bars(models: Mapping[str, tuple[str, Mapping[str, Any]]], metric: str) -> str:
    """Bars from zero, one a model (its label and its figures by name), with the interval and the value."""
    figures = {name: entry.get(metric, {}) for name, (_, entry) in models.items()}
    ends = [or_zero(figure.get("high" if measured(figure) else "value")) for figure in figures.values()]
    highest = max(ends, default=1.0) or 1.0

    def draw(axes: Axes) -> None:
        colours = colours_of(models)
        for row, (end, (name, figure)) in enumerate(zip(ends, figures.items())):
            value = or_zero(figure.get("value"))
            axes.barh(row, value, height=0.62, color=colours[name], alpha=0.85)
            if measured(figure):
                axes.errorbar(value, row, xerr=_reach(figure), color=DARK, capsize=3, lw=1.3)
            text = number(figure.get("value"), digits=digits_of(figure))
            axes.text(end + 0.02 * highest, row, text, va="center", fontsize=10)
        _name_rows(axes, [label for label, _ in models.values()])
        axes.set_xlim(0, highest * 1.2)
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=ROUND))
        axes.spines["left"].set_visible(False)

    return svg(draw, height=0.55 + 0.36 * len(models))


def differences(
    columns: Mapping[str, Sequence[Figure | None]],
    rows: Sequence[str],
    width: float = WIDTH,
    opaque: bool = False,
    judged: Sequence[str] = (),
) -> str:
    """Paired differences about a line at zero, filled where the interval is clear of it.

    Args:
        columns: label of the x axis to a figure a row.
        judged: columns in which more is better: blue and orange say better and worse there.
    """

    def draw(grid: Any) -> None:
        for axes, (label, figures) in zip(grid[0], columns.items()):
            axes.axvline(0, color="#999999", lw=1)
            for row, figure in enumerate(figures):
                if figure is not None and measured(figure):
                    clear = sign(figure)
                    colour = BETTER_OR_WORSE[clear] if label in judged else DARK if clear else GREY
                    _interval(axes, figure, row, colour, hollow=not clear)
            axes.margins(x=0.08)
            low, high = axes.get_xlim()
            least = 0.002 if max(abs(low), abs(high)) > 0.0005 else 0.0002
            axes.set_xlim(min(low, -least), max(high, least))
            axes.xaxis.set_major_locator(MaxNLocator(5, steps=ROUND))
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:+g}".replace("-", "−") if value else "0")
            axes.set_xlabel(label)
            axes.grid(axis="y")
            axes.tick_params(axis="y", length=0)
        _name_rows(grid[0][0], rows)

    return svg(draw, 0.8 + 0.3 * len(rows), width, opaque, ncols=len(columns), sharey=True, squeeze=False)


def by_run(titles: Mapping[str, str], points: Mapping[str, Point], metric: str) -> str:
    """One row a run: its model, filled, and the SFT model that it went on from, hollow.

    Args:
        titles, points: by the mark of the run.
    """

    def draw(axes: Axes) -> None:
        colours = run_colours(list(titles))
        for row, mark in enumerate(titles):
            figure, before = points[mark]
            if before is not None:
                _interval(axes, before, row + 0.22, GREY, hollow=True, small=True)
            _interval(axes, figure, row - 0.08, colours[mark])
        _name_rows(axes, list(titles.values()))
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.grid(axis="x")
        axes.set_xlabel(f"{metric.upper()} (hollow: SFT, before)")

    return svg(draw, height=0.8 + 0.38 * len(titles))


def tradeoff(x: Mapping[str, Point], y: Mapping[str, Point], truth: float | None, ylabel: str) -> str:
    """Accuracy over mean log-popularity, a point with intervals a run, and a thin line to it from its SFT model.

    Args:
        x, y: by the mark of the run.
        truth: mean log-popularity of what people chose; None is not drawn.
    """

    def draw(axes: Axes) -> None:
        if truth is not None:
            axes.axvline(truth, color=DARK, lw=1.1, ls="--")
        for mark, colour in run_colours(list(x)).items():
            (a, a_before), (b, b_before) = x[mark], y[mark]
            at, height = or_zero(a["value"]), or_zero(b["value"])
            if a_before is not None and b_before is not None:
                start, level = or_zero(a_before["value"]), or_zero(b_before["value"])
                axes.plot([start, at], [level, height], color=colour, lw=0.9, alpha=0.7)
                axes.plot(start, level, "o", ms=5, color=GREY, mfc="white", mew=1.2)
            axes.errorbar(at, height, xerr=_reach(a), yerr=_reach(b), fmt="o", ms=8, color=colour, elinewidth=1.1)
            axes.annotate(mark, (at, height), (6, 5), textcoords="offset points", fontsize=10, fontweight="bold")
        axes.margins(0.1)
        axes.grid()
        axes.set_xlabel("mean log-popularity" + (" (dashed: what people chose)" if truth is not None else ""))
        axes.set_ylabel(ylabel)

    return svg(draw, height=3.4)


def _interval(axes: Axes, figure: Figure, row: float, colour: str, hollow: bool = False, small: bool = False) -> None:
    """A point and its interval in a row."""
    axes.errorbar(
        or_zero(figure["value"]),
        row,
        xerr=_reach(figure),
        fmt="o",
        ms=5 if small else 7,
        mew=1.2 if small else 1.6,
        color=colour,
        mfc="white" if hollow else colour,
        ecolor=LIGHT if small else colour,
        elinewidth=1.2 if small else 2.2,
    )


def _reach(figure: Figure) -> list[list[float]] | None:
    """How far the interval reaches below and above the value, as error bars want it."""
    if not measured(figure):
        return None
    return [[max(figure["value"] - figure["low"], 0)], [max(figure["high"] - figure["value"], 0)]]


def _name_rows(axes: Axes, names: Sequence[str]) -> None:
    """Names at the left, the first row on top."""
    axes.set_yticks(range(len(names)), [short(name) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
