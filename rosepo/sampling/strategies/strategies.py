"""Rejected-sampling strategies: where the titles that a group rejects come from.

A strategy is any callable ``(examples, count, draws) -> int64 [N, count]``: `count` distinct items for each example,
in the order in which they shall be used, none in its history and none its target, -1 where there are no more. All
randomness comes from `draws` (see `rosepo.data.random`), so that an example's items depend on nothing but the
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

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from rosepo.data.random import Draws
from rosepo.sampling.strategies.example_batch import Examples, Excluded
from rosepo.utils.errors import StageError, UserError
from rosepo.utils.imports import find_callable

if TYPE_CHECKING:
    from rosepo.data.catalogue import Catalogue

ATTEMPTS = 3
"""Draws for one pick: rounding may, very rarely, lead to an item that is excluded."""
PROPOSAL_DRAWS = 1 << 20
"""Number of the first draw that a proposing strategy gets; those below belong to who accepts."""


class Strategy(Protocol):
    """What the mixture calls."""

    def __call__(self, examples: Examples, count: int, draws: Draws) -> np.ndarray:
        """Distinct items int64 [N, count] for each example, -1 where there are no more."""


class Answers(Protocol):
    """The policy's answers: a `Decoder`, or what generates freely."""

    def top_k(
        self, prompts: Sequence[np.ndarray], excluded: Sequence[np.ndarray], k: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Items int64 [N, k], best first, none of those excluded, -1 behind the last; and scores float32 [N, k]."""


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
    maker = find_callable(path, "pairs.strategies")
    try:
        made: Strategy = maker(catalogue)
    except Exception as error:
        raise UserError(
            f"pairs.strategies: {path} cannot be called with a catalogue: {type(error).__name__}: {error}"
        ) from error
    if not callable(made):
        raise UserError(f"pairs.strategies: {path} returns {type(made).__name__} and not a strategy")
    return made


class WrongAnswers:
    """The model's own wrong answers, for helpfulness: a random one of its `top` best titles outside history and target.

    Args:
        decoder: gives ``top + count - 1`` answers an example, or as many as there are.
        top: answers that each pick chooses from; 1 takes the hardest.
    """

    def __init__(self, decoder: Answers, top: int) -> None:
        self.decoder, self.top = decoder, top

    def __call__(self, examples: Examples, count: int, draws: Draws) -> np.ndarray:
        if examples.prompts is None:
            raise ValueError("self_hard needs the examples' prompts")
        ranked, _ = self.decoder.top_k(examples.prompts, examples.excluded.lists(), self.top + count - 1)
        return pick_from_top(ranked, self.top, count, draws)


class Candidates:
    """One of the prompt's own candidates, as in S-DPO (arXiv 2406.09215); a control."""

    def __call__(self, examples: Examples, count: int, draws: Draws) -> np.ndarray:
        if examples.candidates is None:
            raise ValueError("candidates needs the examples' candidate lists")
        # In item order, so that where the target stood in the list tells nothing.
        lists = np.sort(examples.candidates, axis=1)
        free = ~np.stack([examples.excluded.holds(column) for column in lists.T], axis=1)
        order = np.argsort(~free, axis=1, kind="stable")
        ranked = np.where(np.take_along_axis(free, order, axis=1), np.take_along_axis(lists, order, axis=1), -1)
        if ranked.shape[1] < count:
            ranked = np.pad(ranked, ((0, 0), (0, count - ranked.shape[1])), constant_values=-1)
        return pick_from_top(ranked, ranked.shape[1], count, draws)


class Accepted:
    """Statistical rejection sampling (RSO, arXiv 2309.06657): proposals that the oracle lets pass.

    Distinct titles are proposed, in random order. Each is accepted with probability ``exp((f - f_max) / temperature)``,
    where f is its calibrated oracle score and f_max the highest among the proposals that are left; the best one is
    always accepted. Rounds go on over what is left until enough are accepted. So low temperatures take what the user
    may well have liked next (the hardest negatives, and the ones most likely to be false), high ones any proposal.

    Args:
        proposer: strategy that proposes.
        scores: calibrated oracle scores float32 [N, C] of items int64 [N, C] after each example's history.
        proposals: titles proposed an example.
        temperature: β_s, in units of the calibrated score (logits).
    """

    def __init__(
        self,
        proposer: Strategy,
        scores: Callable[[Examples, np.ndarray], np.ndarray],
        proposals: int,
        temperature: float,
    ) -> None:
        self.proposer, self.scores, self.proposals, self.temperature = proposer, scores, proposals, temperature

    def __call__(self, examples: Examples, count: int, draws: Draws) -> np.ndarray:
        size = max(self.proposals, count)
        items = self.proposer(examples, size, lambda draw: draws(PROPOSAL_DRAWS + draw))
        # The order of proposals is their proposer's ranking: it shall not decide who is asked first.
        shuffled = np.argsort(np.stack([draws(count * size + place) for place in range(size)], axis=1), axis=1)
        items = np.take_along_axis(items, shuffled, axis=1)
        # Where proposals ran out, one that is there is asked about again.
        asked = np.where(items >= 0, items, items.max(axis=1, keepdims=True))
        rows = np.flatnonzero(asked[:, 0] >= 0)
        scores = np.zeros(items.shape)
        scores[rows] = self.scores(examples.take(rows), asked[rows])
        if not np.isfinite(scores).all():
            raise StageError("rso: the oracle gives scores that are not finite: train it again")
        left = items >= 0
        accepted = np.full((len(items), count), -1, dtype=np.int64)
        filled = np.zeros(len(items), dtype=np.int64)
        for trial in range(count):  # each round accepts one at least
            best = np.where(left, scores, -np.inf).max(axis=1, keepdims=True, initial=-np.inf)
            chance = np.exp(np.minimum(np.where(left, scores - best, -np.inf), 0.0) / self.temperature)
            for place in range(size):
                passes = left[:, place] & (draws(trial * size + place) < chance[:, place]) & (filled < count)
                rows = np.flatnonzero(passes)
                accepted[rows, filled[rows]] = items[rows, place]
                filled[rows] += 1
                left[rows, place] = False
            if (filled == np.minimum(count, (items >= 0).sum(axis=1))).all():
                break
        return accepted


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
