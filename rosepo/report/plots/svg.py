"""How every picture is drawn: as SVG text, readable at half a page and on a phone."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

from matplotlib import rc_context
from matplotlib.axis import Axis
from matplotlib.figure import Figure

WIDTH = 5.2
"""Inches."""
DARK, GREY, LIGHT = "#222222", "#777777", "#bbbbbb"
ROUND = (1, 2, 5, 10)
"""Steps between marks of an axis, times a power of ten."""
STYLE: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#999999",
    "axes.labelcolor": "#333333",
    "axes.axisbelow": True,
    "grid.color": "#eeeeee",
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "text.color": DARK,
    "svg.fonttype": "path",
    "legend.frameon": False,
    "legend.fontsize": 10,
    "text.parse_math": False,  # a dollar sign in a name is a dollar sign
}


def svg(draw: Callable[[Any], None], height: float, width: float = WIDTH, opaque: bool = False, **grid: Any) -> str:
    """A picture of `width` × `height` inches, the same for the same figures.

    Args:
        draw: fills the axes; it gets an array of them where `grid` (as of `Figure.subplots`) asks for several.
        opaque: on white.
    """
    buffer = io.BytesIO()
    with rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure.subplots(**grid))
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, transparent=not opaque)
    return buffer.getvalue().decode()


def in_percent(axis: Axis) -> None:
    """Marks of shares."""
    axis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")


def or_zero(value: float | None) -> float:
    """Zero where there is no number."""
    return 0.0 if value is None else float(value)
