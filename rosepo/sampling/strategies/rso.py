"""The strategy `rso`: proposals of another one that the oracle lets pass."""

from __future__ import annotations

import numpy as np

from rosepo.data.random import Draws
from rosepo.sampling.strategies.example_batch import Examples
from rosepo.sampling.strategies.protocol import Scores, Strategy, StrategyInputs
from rosepo.sampling.strategies.self_hard import wrong_answers
from rosepo.sampling.strategies.weighted import make_popularity, make_uniform
from rosepo.utils.errors import StageError

PROPOSAL_DRAWS = 1 << 20
"""Number of the first draw that a proposing strategy gets; those below belong to who accepts."""


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
        scores: Scores,
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


def make_rso(inputs: StrategyInputs) -> Strategy:
    """Raises ValueError where there is no oracle."""
    if inputs.scores is None:
        raise ValueError("rso asks the oracle, and there is none")
    proposals = max(inputs.option("rso_proposals"), inputs.negatives)
    return Accepted(_proposer(inputs, proposals), inputs.scores, proposals, inputs.option("rso_temperature"))


def _proposer(inputs: StrategyInputs, proposals: int) -> Strategy:
    source = inputs.option("rso_from")
    if source == "self_hard":
        return wrong_answers(inputs, 1, proposals)  # the best ones, in order
    return make_popularity(inputs) if source == "popularity" else make_uniform(inputs)
