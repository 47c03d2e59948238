"""Pictures of how something is spread: popularity of what is recommended, epsilon, and how sure the oracle is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from rosepo.config.strategies import OWN_COLOUR, STRATEGIES
from rosepo.report.plots.svg import DARK, in_percent, svg
from rosepo.report.text.labels import COLOURS, colours_of, label, short

ALL_COLOUR = "#666666"


def popularity(train_count: np.ndarray, exposures: Mapping[str, np.ndarray]) -> str:
    """Which popularity the recommended items have: share of recommendations by training interactions of the item.

    Args:
        train_count: int64 [n_items].
        exposures: name (a model, or `truth`) to int64 [n_items].
    """
    edges = _doubling(int(train_count.max(initial=1)))
    place = np.clip(np.searchsorted(edges, train_count, side="right") - 1, 0, len(edges) - 2)
    bins = [f"{low}" if high - low == 1 else f"{low}–{high - 1}" for low, high in pairwise(edges)]
    x, colours = np.arange(len(bins)), colours_of(exposures)

    def draw(axes: Axes) -> None:
        for name, counts in exposures.items():
            share = np.bincount(place, counts, minlength=len(x)) / max(counts.sum(), 1)
            if name == "truth":
                axes.bar(x, share, width=0.9, color="#d9d9d9", label=short(label(name)))
            else:  # that of SFT is wide enough to be seen under that of the model which began as it
                wide = 3.6 if name == "sft" and "aligned" in exposures else 1.8
                axes.plot(x, share, "o-", color=colours[name], lw=wide, ms=2.7 + wide, label=short(label(name)))
        axes.set_xticks(x, bins, rotation=35 if len(x) > 5 else 0, ha="right" if len(x) > 5 else "center")
        axes.set_xlabel("interactions of the item in training")
        axes.set_ylim(bottom=0)
        axes.set_ylabel("share of top-10 places")
        in_percent(axes.yaxis)
        axes.legend(loc="upper left")

    return svg(draw, height=3.3)


def histograms(counts: Mapping[str, np.ndarray], edges: np.ndarray, ceiling: float | None) -> str:
    """Histograms of epsilon, one under the other: all pairs, then each strategy in its own colour.

    Args:
        counts: name to int64 [bins], all pairs first.
        edges: float [bins + 1].
        ceiling: `align.epsilon_max`, drawn as a line; None where it was not used.
    """

    def draw(grid: Any) -> None:
        for place, (axes, (name, values)) in enumerate(zip(grid[:, 0], counts.items())):
            total = max(int(values.sum()), 1)
            known = STRATEGIES[name].colour if name in STRATEGIES else OWN_COLOUR
            colour = known if place else ALL_COLOUR
            axes.bar(edges[:-1], values / total, width=np.diff(edges), align="edge", color=colour, alpha=0.9)
            if ceiling is not None:
                axes.axvline(ceiling, color=DARK, lw=1.2, ls="--")
            axes.set_title(f"{name} · {total:,} pair{'' if total == 1 else 's'}", fontsize=10.5, loc="left", pad=3)
            axes.yaxis.set_major_locator(MaxNLocator(2))
            in_percent(axes.yaxis)
        axes.set_xlim(0, 0.5)
        axes.set_xlabel("ε of a pair" + ("" if ceiling is None else f" (dashed: clamp at {ceiling:g})"))
        axes.figure.supylabel("share of pairs", fontsize=11, color="#333333")

    return svg(draw, 0.75 + 1.05 * len(counts), nrows=len(counts), sharex=True, sharey=True, squeeze=False)


def reliability(bins: Sequence[Mapping[str, float]]) -> str:
    """How often the item that the oracle prefers is the right one, over how sure it is; the diagonal is honesty.

    Args:
        bins: of `calibration.json`; a point's size grows with the share of its pairs.
    """
    total = max(sum(row["pairs"] for row in bins), 1)
    sure, right, pairs = ([row[key] for row in bins] for key in ("confidence", "accuracy", "pairs"))

    def draw(axes: Axes) -> None:
        axes.plot([0.5, 1.0], [0.5, 1.0], color="#999999", lw=1.2, ls="--")
        axes.plot(sure, right, color=COLOURS["oracle"], lw=1.2)
        sizes = [12 + 400 * n / total for n in pairs]
        axes.scatter(sure, right, s=sizes, color=COLOURS["oracle"], alpha=0.8, zorder=3)
        axes.set_xlim(0.48, 1.02)
        axes.set_xlabel("how sure the oracle is of the title it prefers")
        axes.set_ylabel("how often it is right")
        in_percent(axes.xaxis)
        in_percent(axes.yaxis)
        axes.grid(axis="y")

    return svg(draw, height=2.7)


def _doubling(highest: int) -> np.ndarray:
    """Edges 0, 1, 2, 4, 8, … beyond `highest`, thinned to at most twelve bins."""
    powers = 2 ** np.arange(0, math.ceil(math.log2(highest + 1)) + 1)
    step = max(1, math.ceil(len(powers) / 12))
    return np.concatenate([[0], powers[::-1][::step][::-1]])
