"""Mixtures of strategies: K distinct rejected items whatever the strategies can give."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rosepo.sampling.strategies.example_batch import Examples
from rosepo.sampling.strategies.look_alikes import LookAlikes
from rosepo.sampling.strategies.mixture import FALLBACK, check_negatives, max_negatives, sample_rejected
from rosepo.sampling.strategies.protocol import Strategy
from rosepo.sampling.strategies.weighted import popularity
from rosepo.utils.errors import StageError, UserError
from tests.helpers import examples_of, tiny_catalogue
from tests.sampling.strategies.test_look_alikes import embeddings_of
from tests.sampling.strategies.test_strategies import batches, forbidden


def strategies_of(n_items: int) -> dict[str, Strategy]:
    counts = np.arange(n_items) ** 2  # the first item was never seen
    return {"popularity": popularity(counts, 1.0), "semantic": LookAlikes(embeddings_of(n_items), 0.9, 3)}


WEIGHTS = {"semantic": 1.0, "popularity": 2.0}


@settings(max_examples=150)
@given(batches(), st.integers(1, 5), st.integers(0, 3))
def test_groups_hold_distinct_items_outside_history_and_target(examples: Examples, count: int, seed: int) -> None:
    strategies = strategies_of(examples.n_items)
    room = min(examples.n_items - len(forbidden(examples, row)) for row in range(len(examples)))
    if room < count:
        with pytest.raises(StageError, match=f"pairs.negatives={count}"):
            sample_rejected(examples, strategies, WEIGHTS, count, seed)
        return
    rejected = sample_rejected(examples, strategies, WEIGHTS, count, seed)
    for row, items in enumerate(rejected.items.tolist()):
        assert len(set(items)) == count
        assert not set(items) & forbidden(examples, row)
        assert all(0 <= item < examples.n_items for item in items)
    assert (rejected.fallback == (rejected.strategy == rejected.names.index(FALLBACK))).all()
    for row in range(len(examples)):
        alone = sample_rejected(examples.take(np.array([row])), strategies, WEIGHTS, count, seed)
        assert alone.items[0].tolist() == rejected.items[row].tolist()
        assert alone.strategy[0].tolist() == rejected.strategy[row].tolist()


def many(n: int = 20_000, n_items: int = 30) -> Examples:
    histories = np.random.default_rng(0).integers(0, n_items, (n, 5))
    return examples_of([str(row) for row in range(n)], list(histories), np.arange(n) % n_items, n_items)


def test_weights_decide_how_often_a_strategy_is_used() -> None:
    rejected = sample_rejected(many(), strategies_of(30), WEIGHTS, 2, 0)
    share = (rejected.strategy == rejected.names.index("popularity")).mean(axis=0)
    np.testing.assert_allclose(share, 2 / 3, atol=0.015)


def test_the_order_of_the_weights_changes_nothing() -> None:
    first = sample_rejected(many(500), strategies_of(30), WEIGHTS, 2, 0)
    second = sample_rejected(many(500), strategies_of(30), dict(reversed(WEIGHTS.items())), 2, 0)
    np.testing.assert_array_equal(first.items, second.items)


def test_a_strategy_of_weight_zero_is_not_asked() -> None:
    strategies = {"popularity": strategies_of(30)["popularity"]}
    rejected = sample_rejected(many(500), strategies, {"popularity": 1.0, "semantic": 0.0}, 1, 0)
    assert rejected.names == ("popularity", FALLBACK)


def test_items_never_depend_on_the_target_beyond_leaving_it_out() -> None:
    examples = many(2000)
    other = replace(examples, targets=(examples.targets + 1) % 30)
    first = sample_rejected(examples, strategies_of(30), {"popularity": 1.0}, 1, 0)
    second = sample_rejected(other, strategies_of(30), {"popularity": 1.0}, 1, 0)
    assert (first.items == second.items).mean() > 0.7


def test_seeds_give_other_groups() -> None:
    first, second = (sample_rejected(many(2000), strategies_of(30), WEIGHTS, 1, seed) for seed in (0, 1))
    assert (first.items != second.items).mean() > 0.5


def test_what_a_catalogue_allows() -> None:
    assert max_negatives(tiny_catalogue(30), 20) == 9
    for wanted in (9, None):
        check_negatives(wanted, 9, 30)
    with pytest.raises(UserError, match=r"negatives=10 is .*: 30 items leave 9 outside .*; lower it"):
        check_negatives(10, 9, 30)
    for wanted in (1, None):
        with pytest.raises(UserError, match=r"30 items leave 0 outside .*; none is left to reject: bring more items"):
            check_negatives(wanted, -3, 30)


def answering(answer: Any) -> Strategy:
    """A strategy that gives the same to everybody."""
    return lambda examples, count, draws: answer


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (np.zeros((2, 1), dtype=np.int64), r"gives int64 \[2, 1\], not integers \[2, 2\]"),
        (np.array([[1.5, 2.0], [1.0, 2.0]]), "gives float64"),
        ([[1, 2], [1, 2]], "gives list"),
        (np.array([[4, 5], [4, 9]]), "gives example b an item that is not in the catalogue"),
        (np.array([[4, 4], [4, 5]]), "gives example a an item twice"),
        (np.array([[4, 5], [0, 5]]), "gives example b the target, or what was chosen before it"),
        (np.array([[1, 5], [4, 5]]), "gives example a the target, or what was chosen before it"),
    ],
)
def test_a_strategy_that_breaks_its_promise_is_named(answer: Any, words: str) -> None:
    examples = examples_of(["a", "b"], [np.array([1]), np.array([0])], np.array([2, 3]), 9)
    with pytest.raises(StageError, match=f"^strategy mine {words}"):
        sample_rejected(examples, {"mine": answering(answer)}, {"mine": 1.0}, 2, seed=0)


def test_a_strategy_may_have_fewer_items_than_asked_for() -> None:
    examples = examples_of(["a", "b"], [np.array([1]), np.array([0])], np.array([2, 3]), 9)
    found = sample_rejected(examples, {"mine": answering(np.array([[4, -1], [-1, -1]]))}, {"mine": 1.0}, 2, seed=0)
    assert found.fallback.tolist() == [[False, True], [True, True]]
    assert found.items[0, 0] == 4
