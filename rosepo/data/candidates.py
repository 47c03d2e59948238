"""Candidate lists whose order tells nothing about the target.

Public lists shuffled by a generator seeded with the target id let a rule that ignores the user find the target. Here
the negatives and the target's slot come from two streams keyed by the seed and the example id alone.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from rosepo.data.item_columns import item_matrix, items_of
from rosepo.data.random import STEP, example_keys, mixed

_NEGATIVES, _SLOT = 0x6E656761, 0x736C6F74


def candidate_lists(
    example_ids: np.ndarray,
    sequence: np.ndarray,
    user_start: np.ndarray,
    user_of: np.ndarray,
    position: np.ndarray,
    n_candidates: int,
    n_items: int,
    seed: int,
) -> np.ndarray:
    """Candidates [n, n_candidates] int64: the target at a random slot, the others uniform outside history and target.

    Args:
        example_ids: [n] text; with `seed`, the key of all randomness.
        sequence: item indexes of all users end to end, no item twice in a user.
        user_start: [n_users] where each user begins in `sequence`.
        user_of: [n] user number of each example.
        position: [n] of the target in the user's sequence; all items before it, in the window or not, are history.
        n_items: items to draw from; more than the longest history by at least `n_candidates`.
    """
    key = example_keys(example_ids)
    lengths = np.diff(np.append(user_start, len(sequence)))
    owner = np.repeat(np.arange(len(user_start), dtype=np.int64), lengths)
    place = np.arange(len(sequence), dtype=np.int64) - np.repeat(user_start, lengths)
    taken = owner * n_items + sequence
    order = np.argsort(taken)
    taken, place = taken[order], place[order]

    def free(rows: np.ndarray, items: np.ndarray) -> np.ndarray:
        wanted = user_of[rows][:, None] * n_items + items
        at = np.minimum(np.searchsorted(taken, wanted), len(taken) - 1)
        return (taken[at] != wanted) | (place[at] > position[rows][:, None])

    negatives = np.empty((len(key), n_candidates - 1), dtype=np.int64)
    rows, draws = np.arange(len(key)), 2 * n_candidates
    while len(rows):
        stream = _uniform(key[rows], seed, _NEGATIVES, draws)
        items = (stream * n_items).astype(np.int64)
        good = free(rows, items) & _first_in_row(items)
        rank = np.cumsum(good, axis=1)
        done = rank[:, -1] >= n_candidates - 1
        take = good[done] & (rank[done] <= n_candidates - 1)
        negatives[rows[done]] = items[done][take].reshape(-1, n_candidates - 1)
        rows, draws = rows[~done], 2 * draws
    slot = (_uniform(key, seed, _SLOT, 1)[:, 0] * n_candidates).astype(np.int64)
    target = sequence[user_start[user_of] + position]
    column = np.arange(n_candidates)[None, :]
    shifted = np.take_along_axis(
        np.concatenate([negatives, negatives[:, -1:]], axis=1), column - (column > slot[:, None]), axis=1
    )
    return np.where(column == slot[:, None], target[:, None], shifted)


def _first_in_row(items: np.ndarray) -> np.ndarray:
    """Mask [n, m] of the entries that do not occur earlier in their row."""
    order = np.argsort(items, axis=1, kind="stable")
    ordered = np.take_along_axis(items, order, axis=1)
    new = np.concatenate([np.ones((len(items), 1), dtype=bool), ordered[:, 1:] != ordered[:, :-1]], axis=1)
    mask = np.empty_like(new)
    np.put_along_axis(mask, order, new, axis=1)
    return mask


def _uniform(key: np.ndarray, seed: int, stream: int, draws: int) -> np.ndarray:
    """Floats in [0, 1), [n, draws], a function of key, seed, stream and place (SplitMix64 in counter mode)."""
    base = mixed(key ^ mixed(np.array([seed + (stream << 32)], dtype=np.uint64)))
    state = base[:, None] + np.arange(1, draws + 1, dtype=np.uint64) * STEP
    return (mixed(state) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def target_slots(table: pa.Table) -> np.ndarray:
    """Where the target stands in each candidate list (columns target, candidates, one length in all): bool [n, C]."""
    found: np.ndarray = item_matrix(table, "candidates") == items_of(table, "target")[:, None]
    return found
