"""What models are called, and their colours: the same in every picture, told apart by everyone.

Colours are those of Okabe and Ito. A run has five models of its own; any others are called what they were given as.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

NAMES = {
    "popular": "Most popular",
    "markov": "Markov chain",
    "oracle": "Oracle",
    "sft": "SFT",
    "aligned": "Aligned",
    "truth": "What people chose",
}
COLOURS = {
    "popular": "#8c8c8c",
    "markov": "#cc79a7",
    "oracle": "#009e73",
    "sft": "#0072b2",
    "aligned": "#d55e00",
    "truth": "#222222",
}
OTHER_COLOURS = ("#e69f00", "#56b4e9", "#7a4fa3", "#8b5a2b", "#4d6b00", "#b0415a")
SHORT = 22
"""Characters of a label in a picture."""


def label(name: str, metrics: Mapping[str, Any] | None = None) -> str:
    """What people read; with `metrics`, the oracle is named as what it is."""
    kind = (metrics or {}).get("oracle") if name == "oracle" else None
    return NAMES.get(name, name) + (f" ({kind})" if kind else "")


def short(text: str) -> str:
    """A label that fits a picture: the end of a long one, which tells paths and versions apart, is kept too."""
    if len(text) <= SHORT:
        return text
    tail = (SHORT - 1) // 3
    return f"{text[: SHORT - 1 - tail]}…{text[-tail:]}"


def colours_of(names: Iterable[str]) -> dict[str, str]:
    """A colour for every name: its own for a run's five models and the truth, else the next one that is left."""
    found = dict(COLOURS)
    for name in names:
        if name not in found:
            found[name] = OTHER_COLOURS[(len(found) - len(COLOURS)) % len(OTHER_COLOURS)]
    return found


def split_pair(pair: str, names: Iterable[str]) -> tuple[str, str]:
    """The two models of a key of `differences`, `a-b`; names may hold hyphens themselves.

    Raises:
        KeyError: a key of other models.
    """
    known = set(names)
    for place, sign in enumerate(pair):
        if sign == "-" and pair[:place] in known and pair[place + 1 :] in known:
            return pair[:place], pair[place + 1 :]
    raise KeyError(pair)
