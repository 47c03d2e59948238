"""Picking at random from the first of a ranked list."""

from __future__ import annotations

import numpy as np

from rosepo.data.random import Draws


def pick_from_top(ranked: np.ndarray, top: int, count: int, draws: Draws) -> np.ndarray:
    """`count` items of each ranked list, each a uniform one of the first `top` that are still there.

    Args:
        ranked: int64 [N, m], best first, -1 behind the last; m ≥ count.

    Returns:
        int64 [N, count], -1 where a list is used up.
    """
    picks = np.full((len(ranked), count), -1, dtype=np.int64)
    rows = np.arange(len(ranked))
    for pick in range(count):
        choices = np.minimum((ranked >= 0).sum(axis=1), top)
        column = (draws(pick) * choices).astype(np.int64)
        picks[:, pick] = ranked[rows, column]
        ranked = ranked[np.arange(ranked.shape[1]) != column[:, None]].reshape(len(ranked), ranked.shape[1] - 1)
    return picks
