from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score

from rosepo.evaluation.metrics import HR_CUTOFFS, accuracy, hit_ratio, ndcg, target_ranks


@st.composite
def rankings(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Rankings of 30 items cut at 20, some short, and targets that may or may not be in them."""
    n = draw(st.integers(1, 8))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    items = np.stack([rng.permutation(30)[:20] for _ in range(n)])
    for row in range(n):
        items[row, draw(st.integers(0, 20)) :] = -1
    return items, rng.integers(0, 30, size=n)


@given(rankings())
def test_ranks_and_metrics_equal_a_slow_loop(case: tuple[np.ndarray, np.ndarray]) -> None:
    items, targets = case
    ranks = target_ranks(items, targets)
    figures = accuracy(ranks)
    for row, target in enumerate(targets.tolist()):
        places = [place for place, item in enumerate(items[row].tolist()) if item == target]
        assert ranks[row] == (places[0] if places else -1)
        for k in HR_CUTOFFS:
            hit = bool(places) and places[0] < k
            assert figures[f"hr@{k}"][row] == float(hit)
            assert math.isclose(figures[f"ndcg@{k}"][row], 1 / math.log2(places[0] + 2) if hit else 0.0)


@given(st.integers(0, 29), st.sampled_from([1, 5, 10, 20]))
def test_ndcg_equals_scikit_learn(rank: int, k: int) -> None:
    relevance = np.zeros((1, 30))
    relevance[0, rank] = 1.0
    scores = -np.arange(30.0)[None]
    assert math.isclose(ndcg(np.array([rank]), k)[0], ndcg_score(relevance, scores, k=k), abs_tol=1e-12)


def test_an_absent_target_is_a_miss_at_every_cutoff() -> None:
    ranks = np.array([-1])
    assert hit_ratio(ranks, 20)[0] == 0.0
    assert ndcg(ranks, 20)[0] == 0.0


@given(st.lists(st.integers(-1, 25), min_size=1, max_size=30))
def test_metrics_grow_with_the_cutoff_and_ndcg_stays_under_the_hit_ratio(ranks: list[int]) -> None:
    figures = accuracy(np.array(ranks))
    assert np.array_equal(figures["hr@1"], figures["ndcg@1"])
    for low, high in ((1, 5), (5, 10), (10, 20)):
        assert (figures[f"hr@{low}"] <= figures[f"hr@{high}"]).all()
        assert (figures[f"ndcg@{low}"] <= figures[f"ndcg@{high}"]).all()
        assert (figures[f"ndcg@{high}"] <= figures[f"hr@{high}"]).all()
