"""Titles drawn from the policy's and from the oracle's distribution: the chances that they claim, without repeats."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

from rosepo.data.random import stream
from rosepo.lm.rows.plain_rows import plain_logps
from rosepo.lm.titles.beam_search import Decoder
from rosepo.sampling.strategies import distributions
from rosepo.sampling.strategies.distributions import FromOracle, FromPolicy, draw_titles
from rosepo.sampling.strategies.example_batch import Examples
from rosepo.utils.errors import StageError
from rosepo.utils.log_shares import from_codes
from tests.helpers import examples_of, tiny_builder, tiny_model
from tests.sampling.strategies.test_strategies import batches, check_promises

LOGITS = np.array([0.3, 2.0, -1.0, 1.2, 0.0, -0.4])


def many(n: int, n_items: int = 6, history: tuple[int, ...] = (4,), target: int = 5) -> Examples:
    """Examples that differ by their id alone."""
    ids = [f"{number}:1" for number in range(n)]
    return examples_of(ids, [np.array(history)] * n, np.full(n, target), n_items)


def constant(logits: np.ndarray) -> Callable[[Examples], np.ndarray]:
    return lambda examples: np.tile(logits, (len(examples), 1))


@settings(max_examples=60)
@given(batches(), st.integers(1, 6))
def test_draws_from_the_oracle_are_distinct_and_outside_history_and_target(examples: Examples, count: int) -> None:
    scores = constant(np.linspace(-30, 30, examples.n_items))
    check_promises(examples, FromOracle(scores), count)
    one_at_a_time = distributions.CELLS
    try:
        distributions.CELLS = 1
        parts = FromOracle(scores)(examples, count, stream(examples.keys, 0, "name"))
    finally:
        distributions.CELLS = one_at_a_time
    np.testing.assert_array_equal(parts, FromOracle(scores)(examples, count, stream(examples.keys, 0, "name")))


def test_titles_are_drawn_with_the_chances_of_their_distribution_in_order() -> None:
    examples = many(20_000)
    items = FromOracle(constant(LOGITS))(examples, 2, stream(examples.keys, 0, "oracle"))
    p = special.softmax(LOGITS[:4])  # what was seen and the target are out
    pairs = list(itertools.permutations(range(4), 2))
    expected = [p[one] * p[two] / (1 - p[one]) for one, two in pairs]
    counts = [int(((items[:, 0] == one) & (items[:, 1] == two)).sum()) for one, two in pairs]
    assert sum(counts) == len(examples)
    assert stats.chisquare(counts, len(examples) * np.array(expected)).pvalue > 1e-3


def test_the_oracle_s_best_titles_alone_are_drawn_where_that_is_asked() -> None:
    examples = many(2_000)
    strategy = FromOracle(constant(LOGITS), top=2)
    assert set(strategy(examples, 1, stream(examples.keys, 0, "oracle")).ravel().tolist()) == {1, 3}
    assert (strategy(examples, 3, stream(examples.keys, 0, "oracle"))[:, 2] == -1).all()
    rest, shares = strategy.odds(examples, whole=True)
    shares = from_codes(shares)
    assert np.allclose(rest, special.logsumexp(LOGITS[[1, 3]]))
    assert np.allclose(shares[:, [1, 3]], special.softmax(LOGITS[[1, 3]]), rtol=1e-3)
    assert not shares[:, [0, 2, 4, 5]].any()
    rest, shares = FromOracle(constant(LOGITS)).odds(examples)
    assert np.allclose(rest, special.logsumexp(LOGITS[:4]))
    assert shares is None


def test_draws_depend_on_the_example_the_seed_the_strategy_and_nothing_else() -> None:
    examples, strategy = many(300), FromOracle(constant(LOGITS))
    drawn = {key: strategy(examples, 2, stream(examples.keys, *key)) for key in ((0, "a"), (1, "a"), (0, "b"))}
    assert not any(np.array_equal(drawn[0, "a"], drawn[key]) for key in ((1, "a"), (0, "b")))
    rows = np.arange(299, -1, -3)
    part = examples.take(rows)
    np.testing.assert_array_equal(strategy(part, 2, stream(part.keys, 0, "a")), drawn[0, "a"][rows])
    # Nor do an item's chances of being there depend on the order in which a search found it.
    items, logits = np.tile(np.arange(6), (300, 1)), np.tile(LOGITS, (300, 1))
    turned = draw_titles(items[:, ::-1], logits[:, ::-1], 3, stream(examples.keys, 0, "a"))
    np.testing.assert_array_equal(turned, draw_titles(items, logits, 3, stream(examples.keys, 0, "a")))


def test_titles_of_no_measurable_chance_follow_in_their_order() -> None:
    examples = many(50, n_items=4, history=(), target=3)
    strategy = FromOracle(constant(np.array([-2000.0, 0.0, -1000.0, 0.0])))
    assert (strategy(examples, 3, stream(examples.keys, 0, "oracle")) == [1, 2, 0]).all()


def test_scores_that_are_not_finite_end_the_work() -> None:
    examples = many(2)
    with pytest.raises(StageError, match="scores that are not finite"):
        FromOracle(constant(np.full(6, np.nan)))(examples, 1, stream(examples.keys, 0, "oracle"))


def test_the_policy_s_own_chances_decide_among_its_best_titles() -> None:
    n, top = 4_000, 4
    builder, model = tiny_builder(8), tiny_model()
    prompt, _ = builder.prompt(np.array([6]))
    with torch.no_grad():
        logps, _ = plain_logps(model, [prompt] * 8, [builder.completion(item) for item in range(8)])
    allowed = np.array([0, 1, 2, 3, 4, 5])
    best = allowed[np.argsort(-logps.numpy()[allowed])][:top]
    decoder = Decoder(model, builder, beams=8)

    class Once:
        """The search of one example, for all those that have the same prompt."""

        def top_k(self, prompts, excluded, k):
            items, scores = decoder.top_k(prompts[:1], excluded[:1], k)
            return np.tile(items, (len(prompts), 1)), np.tile(scores, (len(prompts), 1))

    ids = [f"{number}:1" for number in range(n)]
    examples = examples_of(ids, [np.array([6])] * n, np.full(n, 7), 8, [prompt] * n)
    items = FromPolicy(Once(), top)(examples, 2, stream(examples.keys, 0, "policy"))
    p = special.softmax(logps.numpy()[best].astype(np.float64))
    counts = [int((items[:, 0] == item).sum()) for item in best]
    assert stats.chisquare(counts, n * p / p.sum()).pvalue > 1e-3
    assert set(items.ravel().tolist()) <= set(best.tolist())
    assert (items[:, 0] != items[:, 1]).all()
