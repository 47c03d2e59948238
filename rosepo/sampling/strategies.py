"""Rejected-sampling strategies: where the titles that a group rejects come from.

A strategy is any callable ``(examples, count, draws) -> int64 [N, count]``: `count` distinct items for each example,
in the order in which they shall be used, none in its history and none its target, -1 where there are no more. All
randomness comes from `draws` (see `rosepo.sampling.draws`), so that an example's items depend on nothing but the
example.

The three strategies and their aims are RosePO's (arXiv 2410.12519); these definitions are this project's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

from rosepo.models.encoder import history_similarity
from rosepo.sampling.draws import Draws
from rosepo.sampling.examples import Examples, Excluded

if TYPE_CHECKING:
    from rosepo.evaluation.decode import Decoder

ATTEMPTS = 3
"""Draws for one pick: rounding may, very rarely, lead to an item that is excluded."""


class Strategy(Protocol):
    """What the mixture calls."""

    def __call__(self, examples: Examples, count: int, draws: Draws) -> np.ndarray:
        """Distinct items int64 [N, count] for each example, -1 where there are no more."""


class Weighted:
    """Items drawn with probability proportional to fixed weights, without replacement.

    The draw is exact: the mass of an example's excluded items is cut out of the cumulative weights, so no draw is
    rejected however popular the history is.

    Args:
        weights: float [n_items], ≥ 0; an item of weight 0 is never drawn.
    """

    def __init__(self, weights: np.ndarray) -> None:
        self.weights = np.asarray(weights, dtype=np.float64)
        self._positive = int((self.weights > 0).sum())
        self._through = np.cumsum(self.weights)  # weight of an item and all before it

    def __call__(self, examples: Examples, count: int, draws: Draws) -> np.ndarray:
        items = np.full((len(examples), count), -1, dtype=np.int64)
        excluded = examples.excluded
        for pick in range(count):
            if pick:
                excluded = excluded.add(items[:, pick - 1])
            for attempt in range(ATTEMPTS):
                found = self._draw(excluded, draws(attempt * 1000 + pick))
                items[:, pick] = np.where(items[:, pick] < 0, found, items[:, pick])
                if (items[:, pick] >= 0).all():
                    break
        return items

    def _draw(self, excluded: Excluded, uniform: np.ndarray) -> np.ndarray:
        """One item an example, -1 where none is left or where rounding led to one that may not be drawn."""
        if not self._positive:
            return np.full(excluded.n_rows, -1, dtype=np.int64)
        rows, lost = excluded.rows, self.weights[excluded.items]
        lost_before = np.cumsum(lost) - lost
        starts = excluded.offsets[:-1]
        lost_before -= np.append(lost_before, 0.0)[starts][rows]  # from here on within the example
        allowed_before = self._through[excluded.items] - lost - lost_before
        left = self._through[-1] - np.bincount(rows, lost, minlength=excluded.n_rows)
        point = uniform * left
        # Every excluded item that lies before the point moves it on by its weight.
        point += np.bincount(rows, lost * (allowed_before <= point[rows]), minlength=excluded.n_rows)
        items = np.minimum(np.searchsorted(self._through, point, side="right"), len(self.weights) - 1)
        used_up = np.bincount(rows, lost > 0, minlength=excluded.n_rows) >= self._positive
        return np.where(used_up | (self.weights[items] == 0) | excluded.holds(items), -1, items)


def popularity(train_count: np.ndarray, exponent: float) -> Weighted:
    """Popular titles, against popularity bias: probability proportional to ``train_count ** exponent``.

    Args:
        train_count: int64 [n_items], interactions in the training part alone.
        exponent: 0 draws all items alike, also those never seen in training.
    """
    return Weighted(np.power(train_count.astype(np.float64), exponent))


def uniform(n_items: int) -> Weighted:
    """Any other title."""
    return Weighted(np.ones(n_items))


class LookAlikes:
    """Titles like the history's, against semantic hallucination: a random one of the `top` most similar.

    Args:
        embeddings: float32 [n_items, d], unit rows.
        decay: weight of a history item relative to the next newer one.
        top: look-alikes that each pick chooses from.
        max_scores: similarities held at once; the catalogue is searched in blocks of that size.
    """

    def __init__(self, embeddings: np.ndarray, decay: float, top: int, max_scores: int = 2**22) -> None:
        self.embeddings, self.decay, self.top, self.max_scores = embeddings, decay, top, max_scores

    def __call__(self, examples: Examples, count: int, draws: Draws) -> np.ndarray:
        histories = np.split(examples.history_items, examples.history_offsets[1:-1]) if len(examples) else []
        profiles = history_similarity(self.embeddings, histories, self.decay)
        ranked = top_similar(self.embeddings, profiles, examples.excluded, self.top + count - 1, self.max_scores)
        return pick_from_top(ranked, self.top, count, draws)


class WrongAnswers:
    """The model's own wrong answers, for helpfulness: a random one of its `top` best titles outside history and target.

    Args:
        decoder: searches with at least ``top + count - 1`` beams.
        top: answers that each pick chooses from; 1 takes the hardest.
    """

    def __init__(self, decoder: Decoder, top: int) -> None:
        self.decoder, self.top = decoder, top

    def __call__(self, examples: Examples, count: int, draws: Draws) -> np.ndarray:
        if examples.prompts is None:
            raise ValueError("self_hard needs the examples' prompts")
        ranked, _ = self.decoder.top_k(examples.prompts, examples.excluded.lists(), self.top + count - 1)
        return pick_from_top(ranked, self.top, count, draws)


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


def top_similar(
    embeddings: np.ndarray, profiles: np.ndarray, excluded: Excluded, count: int, max_scores: int
) -> np.ndarray:
    """The `count` items most similar to each profile, best first, equal ones in item order; exact, block by block.

    Args:
        embeddings: float32 [n_items, d].
        profiles: float32 [N, d].
        max_scores: similarities held at once.

    Returns:
        int64 [N, count], -1 behind the last item that is left.
    """
    n_rows, n_items = len(profiles), len(embeddings)
    best_items = np.full((n_rows, count), -1, dtype=np.int64)
    best_scores = np.full((n_rows, count), -np.inf, dtype=np.float32)
    block = max(1, max_scores // max(n_rows, 1))
    by_item = np.argsort(excluded.items, kind="stable")
    item_sorted, row_sorted = excluded.items[by_item], excluded.rows[by_item]
    for low in range(0, n_items, block):
        scores = profiles @ embeddings[low : low + block].T
        first, last = np.searchsorted(item_sorted, [low, low + block])
        scores[row_sorted[first:last], item_sorted[first:last] - low] = -np.inf
        width = min(count, scores.shape[1])
        columns = np.argpartition(-scores, width - 1, axis=1)[:, :width]
        items = np.concatenate([best_items, columns + low], axis=1)
        scores = np.concatenate([best_scores, np.take_along_axis(scores, columns, axis=1)], axis=1)
        order = np.lexsort((items, -scores), axis=1)[:, :count]
        best_items, best_scores = np.take_along_axis(items, order, axis=1), np.take_along_axis(scores, order, axis=1)
    best_items[np.isneginf(best_scores)] = -1
    return best_items
