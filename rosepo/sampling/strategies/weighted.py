"""The strategies `popularity` and `uniform`: items by fixed weights."""

from __future__ import annotations

import numpy as np

from rosepo.data.random import Draws
from rosepo.sampling.strategies.example_batch import Examples, Excluded
from rosepo.sampling.strategies.protocol import Strategy, StrategyInputs

ATTEMPTS = 3
"""Draws for one pick: rounding may, very rarely, lead to an item that is excluded."""


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


def make_popularity(inputs: StrategyInputs) -> Strategy:
    return popularity(inputs.catalogue.train_count, inputs.option("popularity_exponent"))


def make_uniform(inputs: StrategyInputs) -> Strategy:
    return uniform(len(inputs.catalogue))
