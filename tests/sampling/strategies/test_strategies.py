"""Every strategy keeps its promises on random catalogues, and draws from the distribution that it names."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from rosepo.data.random import stream
from rosepo.lm.titles.beam_search import Decoder
from rosepo.sampling.strategies.candidates import candidates
from rosepo.sampling.strategies.example_batch import Examples
from rosepo.sampling.strategies.picking import pick_from_top
from rosepo.sampling.strategies.protocol import Strategy
from rosepo.sampling.strategies.rso import Accepted
from rosepo.sampling.strategies.self_hard import WrongAnswers
from rosepo.sampling.strategies.weighted import popularity, uniform
from tests.helpers import examples_of, tiny_builder, tiny_model


@st.composite
def batches(draw: st.DrawFn) -> Examples:
    """A few examples over a small catalogue; histories may repeat items and hold the target's earlier occurrence."""
    n_items = draw(st.integers(3, 20))
    item = st.integers(0, n_items - 1)
    n = draw(st.integers(1, 8))
    histories = draw(st.lists(st.lists(item, max_size=12), min_size=n, max_size=n))
    targets = np.array(draw(st.lists(item, min_size=n, max_size=n)))
    ids = [f"{draw(st.integers(0, 10**6))}:{row}" for row in range(n)]
    return examples_of(ids, [np.array(history, dtype=np.int64) for history in histories], targets, n_items)


def forbidden(examples: Examples, row: int) -> set[int]:
    low, high = examples.history_offsets[row : row + 2]
    return {*examples.history_items[low:high].tolist(), int(examples.targets[row])}


def check_promises(examples: Examples, strategy: Strategy, count: int, available: int | None = None) -> None:
    items = strategy(examples, count, stream(examples.keys, 0, "name"))
    assert items.shape == (len(examples), count)
    for row, picks in enumerate(items.tolist()):
        found = [item for item in picks if item >= 0]
        taken = forbidden(examples, row)
        assert not set(found) & taken
        assert len(set(found)) == len(found)
        left = examples.n_items - len(taken) if available is None else available
        assert len(found) == min(count, left)
        assert picks[len(found) :] == [-1] * (count - len(found))
    one_by_one = [
        strategy(part, count, stream(part.keys, 0, "name"))[0]
        for part in (examples.take(np.array([row])) for row in range(len(examples)))
    ]
    np.testing.assert_array_equal(items, np.stack(one_by_one))


@settings(max_examples=150)
@given(batches(), st.integers(1, 6), st.sampled_from([0.0, 0.5, 1.0, 2.0]))
def test_popularity_draws_distinct_items_outside_history_and_target(
    examples: Examples, count: int, exponent: float
) -> None:
    counts = np.arange(1, examples.n_items + 1) ** 3
    check_promises(examples, popularity(counts, exponent), count)


@settings(max_examples=80)
@given(batches(), st.integers(1, 6))
def test_uniform_draws_distinct_items_outside_history_and_target(examples: Examples, count: int) -> None:
    check_promises(examples, uniform(examples.n_items), count)


@st.composite
def batches_with_candidates(draw: st.DrawFn) -> Examples:
    """Batches whose examples carry lists of two to six items, the target among them."""
    examples = draw(batches())
    others = draw(st.integers(1, min(5, examples.n_items - 1)))
    lists = []
    for row in range(len(examples)):
        target = int(examples.targets[row])
        free = [item for item in range(examples.n_items) if item != target]
        lists.append(draw(st.permutations([target, *draw(st.permutations(free))[:others]])))
    return replace(examples, candidates=np.array(lists))


@settings(max_examples=80)
@given(batches_with_candidates(), st.integers(1, 6))
def test_candidates_are_the_prompts_own_and_never_the_target(examples: Examples, count: int) -> None:
    items = candidates(examples, count, stream(examples.keys, 0, "candidates"))
    assert examples.candidates is not None
    for row, picks in enumerate(items.tolist()):
        free = {*examples.candidates[row].tolist()} - forbidden(examples, row)
        found = [item for item in picks if item >= 0]
        assert set(found) <= free
        assert len(set(found)) == len(found) == min(count, len(free))
    shuffled = replace(examples, candidates=examples.candidates[:, ::-1])
    np.testing.assert_array_equal(items, candidates(shuffled, count, stream(examples.keys, 0, "candidates")))


def by_number(examples: Examples, items: np.ndarray) -> np.ndarray:
    """An oracle that likes high item numbers."""
    return items.astype(np.float32) / 2


@settings(max_examples=80)
@given(batches(), st.integers(1, 4), st.integers(1, 6), st.sampled_from([1e-3, 1.0, 100.0]))
def test_accepted_proposals_are_distinct_and_outside_history_and_target(
    examples: Examples, count: int, proposals: int, temperature: float
) -> None:
    check_promises(examples, Accepted(uniform(examples.n_items), by_number, proposals, temperature), count)


def test_proposals_are_accepted_with_the_chance_that_the_oracle_gives_them() -> None:
    n, scores = 60_000, np.array([0.0, 0.0, 1.0, 2.0])
    examples = examples_of([str(row) for row in range(n)], [np.array([0])] * n, np.zeros(n, dtype=np.int64), 4)
    strategy = Accepted(uniform(4), lambda _, items: scores[items], proposals=3, temperature=2.0)
    drawn = np.bincount(strategy(examples, 1, stream(examples.keys, 0, "rso"))[:, 0], minlength=4)
    # All three others are proposed; they are asked in even order until one passes with exp((f - 2) / 2), the best at
    # once where it is asked.
    chance = np.exp((scores[1:] - 2) / 2)
    expected = np.zeros(3)
    for order in itertools.permutations(range(3)):
        open_ = 1 / 6
        for place in order:
            expected[place] += open_ * chance[place]
            open_ *= 1 - chance[place]
        # Nobody is left unaccepted: the best one passes for certain.
        assert open_ == 0
    assert stats.chisquare(drawn[1:], n * expected).pvalue > 1e-3


def test_a_cold_oracle_accepts_the_best_proposals_alone() -> None:
    examples = examples_of(["a", "b"], [np.array([9]), np.array([3])], np.array([0, 9]), 10)
    strategy = Accepted(uniform(10), by_number, proposals=8, temperature=1e-6)
    items = strategy(examples, 2, stream(examples.keys, 0, "rso"))
    assert np.sort(items, axis=1).tolist() == [[7, 8], [7, 8]]


def test_wrong_answers_are_distinct_and_outside_history_and_target() -> None:
    builder = tiny_builder(12)
    decoder = Decoder(tiny_model(), builder, beams=8)
    histories = [np.array(history) for history in ([1], [2, 3, 4], list(range(9)), [5, 5])]
    prompts = [builder.prompt(history)[0] for history in histories]
    examples = examples_of(list("abcd"), histories, np.array([0, 1, 10, 6]), 12, prompts)
    check_promises(examples, WrongAnswers(decoder, top=5), count=3)


def test_the_hardest_wrong_answer_is_the_models_best_remaining_one() -> None:
    builder = tiny_builder(12)
    decoder = Decoder(tiny_model(), builder, beams=12)
    history = np.array([1, 2])
    prompt = builder.prompt(history)[0]
    best = decoder.top_k([prompt], [history], 2)[0][0]
    examples = examples_of(["a"], [history], best[:1], 12, [prompt])
    items = WrongAnswers(decoder, top=1)(examples, 1, stream(examples.keys, 0, "self_hard"))
    assert items.tolist() == [[best[1]]]


@pytest.mark.parametrize("exponent", [1.0, 0.5])
def test_popularity_matches_its_distribution(exponent: float) -> None:
    n = 100_000
    counts = np.array([50, 0, 1, 7, 300, 20, 3, 90, 11, 40])
    examples = examples_of([str(row) for row in range(n)], [np.array([4, 8])] * n, np.full(n, 0), len(counts))
    items = popularity(counts, exponent)(examples, 2, stream(examples.keys, 3, "popularity"))
    weights = counts.astype(float) ** exponent
    weights[[0, 4, 8]] = 0
    expected = n * weights / weights.sum()
    drawn = np.bincount(items[:, 0], minlength=len(counts))
    assert (drawn[weights == 0] == 0).all()
    assert stats.chisquare(drawn[weights > 0], expected[weights > 0]).pvalue > 1e-3
    # The second pick, given the first: proportional among what is left.
    first = items[:, 0] == 7
    weights[7] = 0
    drawn = np.bincount(items[first, 1], minlength=len(counts))
    assert stats.chisquare(drawn[weights > 0], first.sum() * (weights / weights.sum())[weights > 0]).pvalue > 1e-3


def test_popularity_runs_out_of_items_seen_in_training() -> None:
    counts = np.array([5, 0, 3, 0, 2])
    examples = examples_of(["a", "b"], [np.array([0]), np.array([0, 2])], np.array([2, 4]), 5)
    items = popularity(counts, 1.0)(examples, 2, stream(examples.keys, 0, "popularity"))
    assert items.tolist() == [[4, -1], [-1, -1]]
    assert (popularity(counts, 0.0)(examples, 2, stream(examples.keys, 0, "popularity")) >= 0).all()


def test_picks_are_even_over_the_top() -> None:
    n = 20_000
    ranked = np.tile(np.arange(10), (n, 1))
    picks = pick_from_top(ranked, 4, 2, stream(np.arange(n, dtype=np.uint64), 0, "x"))
    assert stats.chisquare(np.bincount(picks[:, 0])).pvalue > 1e-3
    assert picks[:, 0].max() == 3
    assert picks[:, 1].max() == 4
    assert (picks[:, 0] != picks[:, 1]).all()
