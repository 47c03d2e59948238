"""What the benchmarks share."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One measured figure beside a rival's; a ratio above 1 means that rosepo is better."""

    name: str
    value: float
    unit: str
    rival: str
    rival_value: float | None
    ratio: float | None
    note: str = ""
