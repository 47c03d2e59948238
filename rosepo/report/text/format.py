"""How figures are told: numbers, intervals, and whether there is a difference at all.

A figure is a mapping with `value`, `low` and `high`, each None (or NaN) where there is no such number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

NONE_SEEN = "no difference seen"
NOT_MEASURED = "could not be measured"
ROUNDING = 1e-9
"""Sums of the same numbers in another order differ by less: no difference of models."""
DIGITS = (3, 5)
"""Digits behind the point, at least and at most."""

Figure = Mapping[str, Any]


def known(*values: float | None) -> bool:
    """Whether all of them are numbers."""
    return all(value is not None and math.isfinite(value) for value in values)


def measured(figure: Figure | None) -> bool:
    """Whether a figure is there with an interval."""
    return figure is not None and known(figure.get("value"), figure.get("low"), figure.get("high"))


def sign(difference: Figure) -> int:
    """1 or -1 where the interval is clear of zero, 0 where it is not (or missing)."""
    if not measured(difference):
        return 0
    return int(difference["low"] > ROUNDING) - int(difference["high"] < -ROUNDING)


def outcome(difference: Figure, up: str = "better", down: str = "worse") -> str:
    """`better`, `worse` (or what is given for them), that no difference was seen, or that none could be measured."""
    if not measured(difference):
        return NOT_MEASURED
    return {1: up, -1: down, 0: NONE_SEEN}[sign(difference)]


def digits_of(figure: Figure) -> int:
    """Digits behind the point that show a figure's interval: three, more where it is narrower than .005."""
    low, high = figure.get("low"), figure.get("high")
    if low is None or high is None or not known(low, high) or high <= low:
        return DIGITS[0]
    return min(max(1 + math.ceil(round(-math.log10(2 * (high - low)), 9)), DIGITS[0]), DIGITS[1])


def number(value: float | None, signed: bool = False, digits: int = DIGITS[0]) -> str:
    """Three digits (two from ten on), or as many as asked for, with a real minus sign; a dash where there is no
    number."""
    if value is None or not math.isfinite(value):
        return "–"
    digits = digits if abs(value) < 10 else digits - 1
    value = round(value, digits) + 0.0  # no minus in front of what rounds to zero
    text = f"{value:+,.{digits}f}" if signed and value else f"{value:,.{digits}f}"
    return text.replace("-", "−")


def interval(figure: Figure) -> str:
    """`+0.010, 95 % interval +0.001 to +0.019`."""
    value, low, high = as_shown(figure)
    return f"{value}, 95 % interval {low} to {high}"


def brackets(figure: Figure, signed: bool = True) -> str:
    """`+0.010 [+0.001, +0.019]`."""
    value, low, high = as_shown(figure, signed)
    return f"{value} [{low}, {high}]"


def joined(words: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]


def as_shown(figure: Figure, signed: bool = True) -> tuple[str, ...]:
    """Value, low and high with as many digits as the interval needs."""
    digits = digits_of(figure)
    return tuple(number(figure.get(key), signed, digits) for key in ("value", "low", "high"))
