from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st

from rosepo.data.catalogue import Catalogue
from rosepo.evaluation.baselines import Markov, Popular, count_transitions, markov, top_k, training_transitions
from tests.helpers import run_table, tiny_catalogue


@settings(deadline=None)
@given(st.integers(0, 10_000))
def test_top_k_equals_a_full_sort_outside_the_history(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 5, size=(4, 12)).astype(float)
    excluded = [rng.choice(12, size=rng.integers(0, 11), replace=False) for _ in range(4)]
    items, best = top_k(scores, excluded, 5)
    for row in range(4):
        allowed = [item for item in range(12) if item not in excluded[row]]
        expected = sorted(allowed, key=lambda item: (-scores[row, item], item))[:5]
        assert items[row].tolist() == expected + [-1] * (5 - len(expected))
        assert best[row, : len(expected)].tolist() == [scores[row, item] for item in expected]
        assert np.isneginf(best[row, len(expected) :]).all()


def test_more_places_than_items_are_padded() -> None:
    items, scores = top_k(np.array([[1.0, 2.0]]), [np.array([1])], 4)
    assert items.tolist() == [[0, -1, -1, -1]]
    assert np.isneginf(scores[0, 1:]).all()


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 7), min_size=1, max_size=6), min_size=1, max_size=6))
def test_markov_equals_a_slow_loop_over_transitions(sequences: list[list[int]]) -> None:
    counts = Counter(item for sequence in sequences for item in sequence)
    followed = Counter(pair for sequence in sequences for pair in pairwise(sequence))
    train_count = np.array([counts[item] for item in range(8)])
    pairs = [(np.array(sequence[:-1], dtype=int), np.array(sequence[1:], dtype=int)) for sequence in sequences]
    scores = Markov(count_transitions(pairs, 8), train_count).score_all([np.array([2, 5]), np.empty(0, dtype=int)])
    order = sorted(range(8), key=lambda item: (-followed[5, item], -counts[item], item))
    assert top_k(scores, [[], []], 8)[0][0].tolist() == order
    by_count = sorted(range(8), key=lambda item: (-counts[item], item))
    assert top_k(scores, [[], []], 8)[0][1].tolist() == by_count


def test_each_training_target_is_counted_once_when_rows_overlap(tmp_path: Path) -> None:
    catalogue = tiny_catalogue(6)
    (tmp_path / "_trajectories").mkdir()
    rows = [{"items": [0, 1, 2], "n_targets": 2}, {"items": [1, 2, 3], "n_targets": 1}]
    pq.write_table(run_table(rows), tmp_path / "_trajectories" / "part-00000.parquet")
    found = [pair for before, after in training_transitions(tmp_path / "_trajectories")
             for pair in zip(before.tolist(), after.tolist())]  # fmt: skip
    assert sorted(found) == [(0, 1), (1, 2), (2, 3)]
    # Items 0 and 4 are the candidates left; neither followed item 3, so the more popular comes first.
    scores = markov(tmp_path, catalogue).score_all([np.array([2])])
    assert top_k(scores, [np.array([2])], 2)[0][0].tolist() == [3, 0]


def test_the_most_popular_come_first_with_ties_in_item_order() -> None:
    catalogue = Catalogue(np.arange(4), list("abcd"), [()] * 4, np.array([2, 5, 5, 0]))
    assert top_k(Popular(catalogue.train_count).score_all([np.array([1])]), [np.array([1])], 3)[0].tolist() == [
        [2, 0, 3]
    ]
