"""Rejected-sampling strategies: where the titles that a group rejects come from.

A strategy is any callable ``(examples, count, draws) -> int64 [N, count]``: `count` distinct items for each example,
in the order in which they shall be used, none in its history and none its target, -1 where there are no more. All
randomness comes from `draws` (see `rosepo.sampling.draws`), so that an example's items depend on nothing but the
example.

One of your own is named in `pairs.strategies` by the import path of its maker, `module:callable`, which is called with
the `Catalogue` in every actor and returns the strategy:

    def newest_first(catalogue):
        def strategy(examples, count, draws):
            ...  # int64 [N, count]; never an item for which examples.excluded says so
        return strategy

The aims of self_hard, semantic and popularity are RosePO's (arXiv 2410.12519); these definitions are this project's.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Protocol

import numpy as np

from rosepo.errors import UserError
from rosepo.models.encoder import history_similarity
from rosepo.sampling.draws import Draws
from rosepo.sampling.examples import Examples, Excluded

if TYPE_CHECKING:
    from rosepo.data.catalogue import Catalogue
    from rosepo.evaluation.decode import Decoder

ATTEMPTS = 3
"""Draws for one pick: rounding may, very rarely, lead to an item that is excluded."""
ITEM_BLOCK, ROW_BLOCK = 4096, 1024
"""Items and examples whose similarities are held at once."""


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


def own_strategy(path: str, catalogue: Catalogue) -> Strategy:
    """The strategy that `module:callable` makes for a catalogue.

    Raises:
        UserError: no such module or callable, or it does not return a strategy.
    """
    module, _, name = path.partition(":")
    try:
        made: Strategy = getattr(importlib.import_module(module), name)(catalogue)
    except (ImportError, AttributeError, TypeError) as error:
        raise UserError(f"pairs.strategies names {path}, which cannot be called with a catalogue: {error}") from error
    if not callable(made):
        raise UserError(f"pairs.strategies names {path}, which returns {type(made).__name__} and not a strategy")
    return made


class LookAlikes:
    """Titles like the history's, against semantic hallucination: a random one of the `top` most similar.

    Args:
        embeddings: float32 [n_items, d], unit rows.
        decay: weight of a history item relative to the next newer one.
        top: look-alikes that each pick chooses from.
    """

    def __init__(self, embeddings: np.ndarray, decay: float, top: int) -> None:
        self.embeddings, self.decay, self.top = embeddings, decay, top

    def __call__(self, examples: Examples, count: int, draws: Draws) -> np.ndarray:
        histories = np.split(examples.history_items, examples.history_offsets[1:-1]) if len(examples) else []
        profiles = history_similarity(self.embeddings, histories, self.decay)
        ranked = top_similar(self.embeddings, profiles, examples.excluded, self.top + count - 1)
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
