"""Strategies that draw from a distribution over titles: the policy's own, or the oracle's.

Both draw without replacement, in order: the first title with its probability, each further one with its share of what
the titles before it leave. That is what the largest of ``log p + Gumbel noise`` are, in falling order (Yellott 1977;
"Gumbel-top-k" in Kool, van Hoof and Welling, arXiv 1903.06059), so that no probability underflows.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy.special import logsumexp

from rosepo.data.random import Draws, gumbel_noise
from rosepo.sampling.strategies.example_batch import Examples
from rosepo.sampling.strategies.protocol import Answers, CatalogueScores, Strategy, StrategyInputs
from rosepo.utils.errors import StageError
from rosepo.utils.log_shares import to_codes

CELLS = 1 << 22
"""Scores of the whole catalogue that are held at once."""


class FromPolicy:
    """Titles drawn from the policy's own distribution, restricted to the `top` best outside history and target.

    Args:
        decoder: gives `top` answers an example and their log-probabilities, or as many as there are.
    """

    def __init__(self, decoder: Answers, top: int) -> None:
        self.decoder, self.top = decoder, top

    def __call__(self, examples: Examples, count: int, draws: Draws) -> np.ndarray:
        if examples.prompts is None:
            raise ValueError("policy needs the examples' prompts")
        ranked, logps = self.decoder.top_k(examples.prompts, examples.excluded.lists(), self.top)
        return draw_titles(ranked, logps, count, draws)


class FromOracle:
    """Titles drawn from the oracle's distribution ``softmax(f)`` over what is neither the target nor seen before it.

    Args:
        scores: f.
        top: titles of the highest scores that the distribution is restricted to; None takes all.
    """

    def __init__(self, scores: CatalogueScores, top: int | None = None) -> None:
        self.scores, self.top = scores, top

    def __call__(self, examples: Examples, count: int, draws: Draws) -> np.ndarray:
        items = np.full((len(examples), count), -1, dtype=np.int64)
        for rows, scores in self._blocks(examples):
            every = np.broadcast_to(np.arange(examples.n_items), scores.shape)
            items[rows] = draw_titles(every, scores, count, _of_rows(draws, rows))
        return items

    def odds(self, examples: Examples, whole: bool = False) -> tuple[np.ndarray, np.ndarray | None]:
        """What the titles are drawn by.

        Returns:
            ``rest = log sum exp f`` over the titles that can be drawn, float32 [N]: ``exp(f - rest)`` is a title's
            chance to be the first, and ``sigmoid(f - rest)`` the target's share where it belongs to the distribution
            too. With `whole` the codes of that chance of every title (`utils.log_shares`), uint16 [N, n_items].
        """
        rest = np.empty(len(examples), dtype=np.float32)
        shares = np.empty((len(examples), examples.n_items), dtype=np.uint16) if whole else None
        for rows, scores in self._blocks(examples):
            scores = scores.astype(np.float64)
            total = logsumexp(scores, axis=1)
            rest[rows] = total
            if shares is not None:
                shares[rows] = to_codes(scores - total[:, None])
        return rest, shares

    def _blocks(self, examples: Examples) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Places of some examples, and their scores float32 [n, n_items], -inf where a title cannot be drawn."""
        size = max(1, CELLS // examples.n_items)
        for low in range(0, len(examples), size):
            rows = np.arange(low, min(low + size, len(examples)))
            part = examples.take(rows)
            scores = np.array(self.scores(part), dtype=np.float32)
            if not np.isfinite(scores).all():
                raise StageError("the oracle gives scores that are not finite: train it again")
            scores[part.excluded.rows, part.excluded.items] = -np.inf
            if self.top is not None and self.top < examples.n_items:
                least = np.partition(scores, -self.top, axis=1)[:, -self.top, None]
                scores[scores < least] = -np.inf
            yield rows, scores


def make_policy(inputs: StrategyInputs) -> Strategy:
    top = inputs.option("policy_top")
    return FromPolicy(inputs.answers(top), top)


def make_oracle(inputs: StrategyInputs) -> Strategy:
    """Raises ValueError where there is no oracle."""
    if inputs.whole is None:
        raise ValueError("the strategy oracle asks the oracle, and there is none")
    return FromOracle(inputs.whole, inputs.option("oracle_top"))


def _of_rows(draws: Draws, rows: np.ndarray) -> Draws:
    """The draws of some of the examples."""
    return lambda draw: draws(draw)[rows]


def draw_titles(items: np.ndarray, logits: np.ndarray, count: int, draws: Draws) -> np.ndarray:
    """`count` distinct items an example, drawn in order from ``softmax(logits)``; int64 [N, count].

    Args:
        items: int64 [N, m], distinct in a row; -1 for none.
        logits: float [N, m], -inf where an item cannot be drawn.

    Returns:
        -1 behind the last item that there is.
    """
    noise = gumbel_noise(draws, np.maximum(items, 0))
    keys = np.where(items >= 0, logits + noise, -np.inf)
    if keys.shape[1] > count:
        best = np.argpartition(-keys, count - 1, axis=1)[:, :count]
    else:
        best = np.tile(np.arange(keys.shape[1]), (len(keys), 1))
    found = np.take_along_axis(keys, best, axis=1)
    order = np.argsort(-found, axis=1, kind="stable")
    best, found = np.take_along_axis(best, order, axis=1), np.take_along_axis(found, order, axis=1)
    drawn = np.full((len(items), count), -1, dtype=np.int64)
    drawn[:, : best.shape[1]] = np.where(np.isneginf(found), -1, np.take_along_axis(items, best, axis=1))
    return drawn
