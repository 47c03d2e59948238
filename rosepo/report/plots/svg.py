"""How every picture of a report is drawn: as SVG text, readable at half a page and on a phone."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

WIDTH = 5.2
STYLE: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#999999",
    "axes.labelcolor": "#333333",
    "axes.grid": False,
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "text.color": "#222222",
    "svg.fonttype": "path",
    "legend.frameon": False,
    "legend.fontsize": 10,
    "text.parse_math": False,  # a dollar sign in a name is a dollar sign
}


def or_zero(value: float | None) -> float:
    """Zero where there is no number."""
    return 0.0 if value is None else float(value)


def svg(draw: Callable[[Axes], None], height: float) -> str:
    """One pair of axes that `draw` fills, `height` inches high."""
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        draw(figure.subplots())
        return text_of(figure)


def text_of(figure: Figure, transparent: bool = True) -> str:
    """A figure as SVG text, the same for the same figure; on white unless `transparent`."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, transparent=transparent)
    return buffer.getvalue().decode()
