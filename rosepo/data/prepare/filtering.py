"""Which interactions stay: the first of each user and item, then the k-core. Pure functions of arrays."""

from __future__ import annotations

import numpy as np

from rosepo.utils.arrays import segment_starts


def first_interactions(
    user: np.ndarray, item: np.ndarray, time: np.ndarray, tie: np.ndarray, n_items: int
) -> np.ndarray:
    """Places of the rows that stay, in the order user, time, tie; of a user's repeated item the earliest stays.

    Args:
        user: [n] integer codes.
        item: [n] integer codes below `n_items`.
        time: [n] float64.
        tie: [n] uint64, smaller first at equal times; see `TieBreaker`.
    """
    order = np.lexsort((item, tie, time, user))
    pairs = user[order].astype(np.int64) * n_items + item[order]
    _, first = np.unique(pairs, return_index=True)
    return order[np.sort(first)]


def core_rows(user: np.ndarray, item: np.ndarray, alive: np.ndarray, k: int) -> np.ndarray:
    """Mask of the rows whose item is `alive` [n_items] bool and whose user has at least `k` such rows; `user` [n] is
    sorted."""
    kept: np.ndarray = alive[item]
    if not len(user):
        return kept
    starts = segment_starts(user)
    counts = np.add.reduceat(kept.astype(np.int64), starts)
    return kept & np.repeat(counts >= k, np.diff(np.append(starts, len(user))))
