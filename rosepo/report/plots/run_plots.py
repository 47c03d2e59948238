"""The report's pictures, each an SVG text. A model keeps its colour in every picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from rosepo.report.plots.svg import STYLE, WIDTH, or_zero, svg, text_of
from rosepo.report.text.format import digits_of, measured, number, sign
from rosepo.report.text.labels import COLOURS, colours_of, label, short

ROUND = (1, 2, 5, 10)
"""Steps between marks of an axis, times a power of ten."""
STRATEGY_COLOURS = ("#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c8c8c")


def accuracy(models: Mapping[str, tuple[str, Mapping[str, Any]]], metric: str) -> str:
    """Bars from zero, one a model (its label and its figures by name), with the 95 % interval and the value."""

    def draw(axes: Axes) -> None:
        colours, shown = colours_of(models), [entry.get(metric, {}) for _, entry in models.values()]
        ends = [or_zero(figure.get("high" if measured(figure) else "value")) for figure in shown]
        highest = max(ends, default=1.0) or 1.0
        for row, (name, figure, end) in enumerate(zip(models, shown, ends)):
            value = or_zero(figure.get("value"))
            axes.barh(row, value, height=0.62, color=colours[name], alpha=0.85)
            if measured(figure):
                around = [[max(value - figure["low"], 0)], [max(end - value, 0)]]
                axes.errorbar(value, row, xerr=around, color="#222222", capsize=3, lw=1.3)
            text = number(figure.get("value"), digits=digits_of(figure))
            axes.text(end + 0.02 * highest, row, text, va="center", fontsize=10)
        axes.set_yticks(range(len(models)), [short(text) for text, _ in models.values()])
        axes.invert_yaxis()
        axes.set_xlim(0, highest * 1.2)
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=ROUND))
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)

    return svg(draw, height=0.55 + 0.36 * len(models))


def change(differences: Mapping[str, Any], metrics: Sequence[str], labels: Sequence[str], about: str) -> str:
    """Paired differences with intervals about a line at zero; filled where the interval is clear of it."""

    def draw(axes: Axes) -> None:
        axes.axvline(0, color="#999999", lw=1)
        for row, name in enumerate(metrics):
            figure = differences[name]
            value, low, high = (or_zero(figure[key]) for key in ("value", "low", "high"))
            clear = sign(figure) != 0
            colour = "#222222" if clear else "#777777"
            axes.plot([low, high], [row, row], color=colour, lw=2.2, solid_capstyle="butt")
            axes.plot(value, row, "o", ms=7, color=colour, mfc=colour if clear else "white", mew=1.6)
        axes.set_yticks(range(len(metrics)), labels)
        axes.invert_yaxis()
        axes.margins(x=0.08, y=0.08)
        low, high = axes.get_xlim()
        least = 0.002 if max(abs(low), abs(high)) > 0.0005 else 0.0002
        axes.set_xlim(min(low, -least), max(high, least))
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=ROUND))
        axes.xaxis.set_major_formatter(
            FuncFormatter(lambda value, _: f"{value:+g}".replace("-", "−") if value else "0")
        )
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel(about)

    return svg(draw, height=0.8 + 0.3 * len(metrics))


def curves(lines: Sequence[tuple[str, str, Sequence[float], Sequence[float]]], xlabel: str, ylabel: str) -> str:
    """Lines (label, colour, x, y); points are marked where they are few."""

    def draw(axes: Axes) -> None:
        for name, colour, x, y in lines:
            axes.plot(x, y, color=colour, lw=1.8, marker="o" if len(x) < 25 else None, ms=3.5, label=name)
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.grid(axis="y", color="#eeeeee")
        axes.set_axisbelow(True)
        if len(lines) > 1:
            axes.legend(loc="best")

    return svg(draw, height=2.7)


def smoothing(counts: Mapping[str, np.ndarray], edges: np.ndarray, ceiling: float | None) -> str:
    """Histograms of epsilon, one under the other: all pairs, then each strategy.

    Args:
        counts: name to int64 [bins]; the first is drawn in grey.
        edges: float [bins + 1].
        ceiling: `align.epsilon_max`, drawn as a line; None where it was not used.
    """
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.75 + 1.05 * len(counts)), layout="constrained")
        rows = figure.subplots(len(counts), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
        colours = ("#666666", *STRATEGY_COLOURS)
        for place, (axes, (name, values)) in enumerate(zip(rows, counts.items())):
            total = max(int(values.sum()), 1)
            share = values / total
            axes.bar(
                edges[:-1], share, width=np.diff(edges), align="edge", color=colours[place % len(colours)], alpha=0.9
            )
            if ceiling is not None:
                axes.axvline(ceiling, color="#222222", lw=1.2, ls="--")
            axes.set_title(f"{name} · {total:,} pair{'' if total == 1 else 's'}", fontsize=10.5, loc="left", pad=3)
            axes.yaxis.set_major_locator(MaxNLocator(2))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))
        rows[-1].set_xlim(0, 0.5)
        label = "ε of a pair" + (f" (dashed: clamp at {ceiling:g})" if ceiling is not None else "")
        rows[-1].set_xlabel(label)
        figure.supylabel("share of pairs", fontsize=11, color="#333333")
        return text_of(figure)


def reliability(bins: Sequence[Mapping[str, float]]) -> str:
    """How often the item that the oracle prefers is the right one, over how sure it is; the diagonal is honesty.

    Args:
        bins: rows of `oracle.calibration.reliability`; a point's size grows with the share of its pairs.
    """

    def draw(axes: Axes) -> None:
        total = max(sum(row["pairs"] for row in bins), 1)
        axes.plot([0.5, 1.0], [0.5, 1.0], color="#999999", lw=1.2, ls="--")
        sure, right = [row["confidence"] for row in bins], [row["accuracy"] for row in bins]
        axes.plot(sure, right, color=COLOURS["oracle"], lw=1.2)
        sizes = [12 + 400 * row["pairs"] / total for row in bins]
        axes.scatter(sure, right, s=sizes, color=COLOURS["oracle"], alpha=0.8, zorder=3)
        axes.set_xlim(0.48, 1.02)
        axes.set_xlabel("how sure the oracle is of the title it prefers")
        axes.set_ylabel("how often it is right")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))
        axes.grid(axis="y", color="#eeeeee")
        axes.set_axisbelow(True)

    return svg(draw, height=2.7)


def popularity(train_count: np.ndarray, exposures: Mapping[str, np.ndarray]) -> str:
    """Which popularity the recommended items have: share of recommendations by training interactions of the item.

    Args:
        train_count: int64 [n_items].
        exposures: name (a model, or `truth`) to int64 [n_items].
    """
    edges = _doubling(int(train_count.max(initial=1)))
    place = np.clip(np.searchsorted(edges, train_count, side="right") - 1, 0, len(edges) - 2)

    colours = colours_of(exposures)

    def draw(axes: Axes) -> None:
        x = np.arange(len(edges) - 1)
        for name, counts in exposures.items():
            share = np.bincount(place, counts, minlength=len(x)) / max(counts.sum(), 1)
            if name == "truth":
                axes.bar(x, share, width=0.9, color="#d9d9d9", label=short(label(name)))
            else:  # that of SFT is wide enough to be seen under that of the model which began as it
                wide = 3.6 if name == "sft" and "aligned" in exposures else 1.8
                axes.plot(x, share, "o-", color=colours[name], lw=wide, ms=2.7 + wide, label=short(label(name)))
        labels = [f"{low}" if high - low == 1 else f"{low}–{high - 1}" for low, high in pairwise(edges)]
        axes.set_xticks(x, labels, rotation=35 if len(x) > 5 else 0, ha="right" if len(x) > 5 else "center")
        axes.set_xlabel("interactions of the item in training")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))
        axes.set_ylim(bottom=0)
        axes.set_ylabel("share of top-10 places")
        axes.legend(loc="upper left")

    return svg(draw, height=3.3)


def _doubling(highest: int) -> np.ndarray:
    """Edges 0, 1, 2, 4, 8, … beyond `highest`, thinned to at most twelve bins."""
    powers = 2 ** np.arange(0, math.ceil(math.log2(highest + 1)) + 1)
    step = max(1, math.ceil(len(powers) / 12))
    kept = powers[::-1][::step][::-1]
    return np.unique(np.concatenate([[0], kept]))
