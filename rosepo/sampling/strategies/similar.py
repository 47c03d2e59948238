"""The items most similar to a profile: exact, in blocks, memory bounded for a million titles."""

from __future__ import annotations

import numpy as np

from rosepo.sampling.strategies.example_batch import Excluded

ITEM_BLOCK, ROW_BLOCK = 4096, 1024
"""Items and examples whose similarities are held at once."""


def top_similar(
    embeddings: np.ndarray, profiles: np.ndarray, excluded: Excluded, count: int, block: int = ITEM_BLOCK
) -> np.ndarray:
    """The `count` items most similar to each profile, best first, equal ones in item order; exact, block by block.

    The answers to a profile depend neither on `block` nor on the other profiles.

    Args:
        embeddings: float32 [n_items, d], rows of length at most 1, as the profiles'.
        profiles: float32 [N, d].
        block: items that are compared at once.

    Returns:
        int64 [N, count], -1 behind the last item that is left.
    """
    best = np.full((len(profiles), count), -1, dtype=np.int64)
    for low in range(0, len(profiles), ROW_BLOCK):
        high = min(low + ROW_BLOCK, len(profiles))
        entries = slice(*excluded.offsets[[low, high]])
        taken = (excluded.rows[entries] - low, excluded.items[entries])
        best[low:high] = _top_of_rows(embeddings, profiles[low:high], taken, count, block)
    return best


def _top_of_rows(
    embeddings: np.ndarray, profiles: np.ndarray, taken: tuple[np.ndarray, np.ndarray], count: int, block: int
) -> np.ndarray:
    """As `top_similar`; `taken` holds the row and the item of every entry that may not be answered."""
    rows, items = taken
    best_items = np.full((len(profiles), count), -1, dtype=np.int64)
    best_scores = np.full((len(profiles), count), -np.inf)
    exact = _fixed_point(profiles)
    for low in range(0, len(embeddings), block):
        scores = exact @ _fixed_point(embeddings[low : low + block]).T
        inside = (items >= low) & (items < low + block)
        scores[rows[inside], items[inside] - low] = -np.inf
        columns = _best_columns(scores, min(count, scores.shape[1]))
        found = np.concatenate([best_items, columns + low], axis=1)
        scores = np.concatenate([best_scores, np.take_along_axis(scores, columns, axis=1)], axis=1)
        order = np.lexsort((found, -scores), axis=1)[:, :count]
        best_items, best_scores = np.take_along_axis(found, order, axis=1), np.take_along_axis(scores, order, axis=1)
    best_items[np.isneginf(best_scores)] = -1
    return best_items


def _best_columns(scores: np.ndarray, width: int) -> np.ndarray:
    """The columns int64 [N, width] of each row's highest scores, ascending; of equal ones the first."""
    place = scores.shape[1] - width
    threshold = np.partition(scores, place, axis=1)[:, place : place + 1]
    above, equal = scores > threshold, scores == threshold
    room = width - above.sum(axis=1, keepdims=True)
    kept = above | (equal & (equal.cumsum(axis=1, dtype=np.int32) <= room))
    return np.nonzero(kept)[1].reshape(len(scores), width)


def _fixed_point(vectors: np.ndarray) -> np.ndarray:
    """Rounded to multiples of 2^-24, float64: products of such vectors, of length at most 1, are exact in any order.

    A matrix product in floating point would round by the shapes of its operands, and tell equal items apart.
    """
    return np.rint(vectors * 2.0**24, dtype=np.float64) / 2.0**24
