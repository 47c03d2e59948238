"""A table of figures with their intervals and n, as both pages draw it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rosepo.report.text.format import Figure, as_shown, measured, sign


@dataclass(frozen=True)
class Cell:
    """One place of a table.

    Attributes:
        below: small text under it.
        strong: it stands out.
        model: whose colour it carries.
        wide: it may wrap.
        share: what a bar beside it shows, 0 to 1.

    A row of a single cell is a heading across the whole table.
    """

    text: str
    below: str = ""
    strong: bool = False
    model: str = ""
    wide: bool = False
    share: float | None = None


@dataclass(frozen=True)
class Table:
    """A table with its heading, what it was measured on, and what is to be said below it."""

    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    title: str = ""
    n: str = ""
    note: str = ""


Row = tuple[Cell, Mapping[str, Figure]]
"""Of figures: its name, and figures by key."""


def measured_on(entry: Mapping[str, Any]) -> str:
    """`n = 3,452 examples of 3,452 users`, of what has `n_examples` and `n_users`."""
    return f"n = {entry['n_examples']:,} examples of {entry['n_users']:,} users"


def figure_cell(figure: Figure | None, strong: bool = False, signed: bool = False) -> Cell:
    """A value and its interval; a dash for what was not measured."""
    if figure is None or figure.get("value") is None:
        return Cell("–")
    value, low, high = as_shown(figure, signed)
    return Cell(value, f"{low} to {high}" if measured(figure) else "", strong)


def change_cell(figure: Figure | None) -> Cell:
    """A difference, which stands out where its interval is clear of zero."""
    return figure_cell(figure, bool(sign(figure or {})), signed=True)


def figures_table(columns: Mapping[str, str], rows: Iterable[Row], head: str = "Model", **about: str) -> Table:
    """Figures with their intervals; `columns`: title by key, `about`: as of `Table`."""
    cells = [[name, *(figure_cell(entry.get(key)) for key in columns)] for name, entry in rows]
    return Table((head, *columns.values()), cells, **about)


def changes_table(columns: Mapping[str, str], rows: Iterable[Row], head: str = "Pair", **about: str) -> Table | None:
    """The same of paired differences; None where there are none."""
    cells = [[name, *(change_cell(entry.get(key)) for key in columns)] for name, entry in rows]
    return (
        Table((head, *columns.values()), cells, note="Bold: the interval is clear of zero.", **about) if cells else None
    )
