"""Two recommenders that know nothing of titles: what is most popular, and what most often came next.

Both are counted from the training part alone and rank all titles that the user had not chosen yet.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy import sparse

from rosepo.data.catalogue import Catalogue
from rosepo.data.item_columns import flat_items
from rosepo.utils.arrays import ranges


class Popular:
    """The same ranking for everyone: items by how often they occur in training.

    Args:
        train_count: int64 [n_items].
    """

    def __init__(self, train_count: np.ndarray) -> None:
        self._scores = train_count.astype(np.float64)

    def score_all(self, histories: Sequence[np.ndarray]) -> np.ndarray:
        """Training counts, float64 [B, n_items]."""
        return np.broadcast_to(self._scores, (len(histories), len(self._scores)))


class Markov:
    """Items by how often they directly followed the newest one in training; popularity orders the rest.

    Args:
        transitions: counts [n_items, n_items], row: an item, column: the item after it.
        train_count: int64 [n_items].
    """

    def __init__(self, transitions: sparse.csr_matrix, train_count: np.ndarray) -> None:
        self._transitions = transitions
        # Below one, so that popularity only decides between items that followed equally often.
        self._back_off = train_count / (1.0 + train_count.max(initial=0))

    def score_all(self, histories: Sequence[np.ndarray]) -> np.ndarray:
        """Transition counts plus the back-off, float64 [B, n_items]; popularity alone after an empty history."""
        scores = np.tile(self._back_off, (len(histories), 1))
        known = [row for row, history in enumerate(histories) if len(history)]
        if known:
            scores[known] += self._transitions[[int(histories[row][-1]) for row in known]].toarray()
        return scores


def count_transitions(pairs: Iterable[tuple[np.ndarray, np.ndarray]], n_items: int) -> sparse.csr_matrix:
    """Sum up batches of (item indexes, indexes of the items right after them), each int64 [m], into counts."""
    counts = sparse.csr_matrix((n_items, n_items), dtype=np.float64)
    for before, after in pairs:
        counts = counts + sparse.csr_matrix((np.ones(len(before)), (before, after)), shape=(n_items, n_items))
    return counts


def training_transitions(folder: Path) -> Iterable[tuple[np.ndarray, np.ndarray]]:
    """Transitions into every training target, batch by batch, from the `_trajectories` table in `folder`.

    Rows may share items (a sliding window does); each target is counted once, because only the last `n_targets` of a
    row's items are its targets.
    """
    for path in sorted(folder.glob("*.parquet")):
        for batch in pq.ParquetFile(path).iter_batches(batch_size=65536, columns=["items", "n_targets"]):
            items, offsets = flat_items(pa.Table.from_batches([batch]), "items")
            targets = batch.column("n_targets").to_numpy().astype(np.int64)
            after = ranges(offsets[1:] - targets, targets)
            # With no history before it, a row's first item is nobody's successor.
            after = np.setdiff1d(after, offsets[:-1], assume_unique=True)
            yield items[after - 1], items[after]


def markov(folder: Path, catalogue: Catalogue) -> Markov:
    """The Markov baseline of the prepared examples in `folder`."""
    pairs = training_transitions(folder / "_trajectories")
    return Markov(count_transitions(pairs, len(catalogue)), catalogue.train_count)


def top_k(scores: np.ndarray, excluded: Sequence[np.ndarray], k: int) -> tuple[np.ndarray, np.ndarray]:
    """The best items of each row outside `excluded`; equal scores in order of item index.

    Args:
        scores: float [B, n_items].
        excluded: B int arrays of item indexes.

    Returns:
        Item indexes int64 [B, k] padded with -1, scores float32 [B, k] padded with -inf.
    """
    allowed = np.array(scores, dtype=np.float64)
    for row, items in enumerate(excluded):
        allowed[row, items] = -np.inf
    width = min(k, allowed.shape[1])
    # A stable sort of the part above the k-th best score keeps ties in item order; partition alone would not.
    threshold = -np.partition(-allowed, width - 1, axis=1)[:, width - 1 : width]
    items = np.full((len(allowed), k), -1, dtype=np.int64)
    best = np.full((len(allowed), k), -np.inf, dtype=np.float32)
    for row in range(len(allowed)):
        candidates = np.flatnonzero((allowed[row] >= threshold[row]) & (allowed[row] > -np.inf))
        order = candidates[np.argsort(-allowed[row, candidates], kind="stable")][:k]
        items[row, : len(order)] = order
        best[row, : len(order)] = allowed[row, order]
    return items, best
