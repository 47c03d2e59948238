"""Figures by groups of users: how long their history is, and how popular what they choose is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from rosepo.metrics.bootstrap import UserBootstrap, plain

SMALLEST = 50
"""Users of a group at least: figures of fewer say little, and may tell of single people."""
METRICS = ("hr@10", "ndcg@10", "log_popularity", "hallucination")
TASTES = ("niche", "middle", "mainstream")

Series = Mapping[str, Mapping[str, np.ndarray]]


def user_groups(users: np.ndarray, lengths: np.ndarray, tastes: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
    """Groupings of the users, each a mapping from a group's name to its examples, bool [N].

    What a user had chosen before the first example that is measured decides. Groups of fewer than `SMALLEST` users are
    left out.

    Args:
        users: int [N] user of every example.
        lengths: int [N] titles chosen before each example.
        tastes: float [N] their mean log-popularity, NaN for none.

    Returns:
        `history_length`, in bins that double ("5–8 titles"), and `popularity_taste`, in thirds of the users: niche,
        middle, mainstream (users of equal taste stay together).
    """
    _, first, codes = np.unique(users, return_index=True, return_inverse=True)
    length, taste = lengths[first].astype(np.int64), tastes[first]
    bins = np.ceil(np.log2(np.maximum(length, 1))).astype(np.int64) + (length > 0)
    thirds = np.full(len(taste), -1)
    known = np.isfinite(taste)
    if known.any():
        thirds[known] = np.searchsorted(np.quantile(taste[known], [1 / 3, 2 / 3]), taste[known], side="left")
    by_length = {_titles(number): bins == number for number in np.unique(bins).tolist()}
    by_taste = {name: thirds == number for number, name in enumerate(TASTES)}
    return {
        grouping: {name: members[codes] for name, members in groups.items() if members.sum() >= SMALLEST}
        for grouping, groups in (("history_length", by_length), ("popularity_taste", by_taste))
    }


def group_figures(
    groups: Mapping[str, Mapping[str, np.ndarray]], users: np.ndarray, series: Series, resamples: int, seed: int
) -> dict[str, Any]:
    """`metrics["groups"]`: by grouping and group n_users, n_examples, `models` with `METRICS`, and where both are there
    the paired `differences` of aligned and SFT.

    Args:
        groups: of `user_groups`.
        users: int [N].
        series: by model and `METRICS` float [N], NaN where an example does not count; `truth` has what people chose.
    """
    return {
        grouping: {name: _figures(members, users, series, resamples, seed) for name, members in named.items()}
        for grouping, named in groups.items()
        if named
    }


def _figures(members: np.ndarray, users: np.ndarray, series: Series, resamples: int, seed: int) -> dict[str, Any]:
    bootstrap = UserBootstrap(users[members], resamples, seed)
    keys = [(name, key) for name in series for key in METRICS if key in series[name]]
    drawn = bootstrap.resample((pair, series[pair[0]][pair[1]][members]) for pair in keys)
    models: dict[str, dict[str, Any]] = {name: {} for name in series if name != "truth"}
    for name, key in keys:
        if name != "truth":
            models[name][key] = plain(drawn.mean((name, key)))
            if ("truth", key) in keys:
                models[name][key]["truth"] = plain(drawn.mean(("truth", key)))["value"]
    found: dict[str, Any] = {"n_users": bootstrap.n_users, "n_examples": bootstrap.n_examples, "models": models}
    if "sft" in models and "aligned" in models:
        found["differences"] = {
            "aligned-sft": {key: plain(drawn.difference(("aligned", key), ("sft", key))) for key in METRICS}
        }
    return found


def _titles(number: int) -> str:
    """What a bin is called: 0, 1, 2, 3–4, 5–8, … titles."""
    high = 2 ** (number - 1) if number else 0
    low = high // 2 + 1
    count = str(high) if number < 3 else f"{low}–{high}"
    return f"{count} title" if count == "1" else f"{count} titles"
