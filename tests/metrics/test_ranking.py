from __future__ import annotations

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score, top_k_accuracy_score

from rosepo.evaluation.baselines import top_k
from rosepo.metrics.ranking import HR_CUTOFFS, accuracy, hit_ratio, ndcg, target_ranks


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


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 5, 10, 20]))
def test_accuracy_of_ranked_scores_equals_scikit_learn(seed: int, k: int) -> None:
    """Scores of a whole catalogue without ties, ranked and measured here, against theirs from the scores alone."""
    rng = np.random.default_rng(seed)
    scores, targets = rng.permuted(np.tile(np.arange(30.0), (6, 1)), axis=1), rng.integers(0, 30, size=6)
    figures = accuracy(target_ranks(top_k(scores, [np.empty(0, int)] * 6, 20)[0], targets))
    relevance = np.eye(30)[targets]
    assert math.isclose(figures[f"ndcg@{k}"].mean(), ndcg_score(relevance, scores, k=k), abs_tol=1e-12)
    theirs = top_k_accuracy_score(targets, scores, k=k, labels=np.arange(30))
    assert math.isclose(figures[f"hr@{k}"].mean(), theirs, abs_tol=1e-12)


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 5, 10, 20]))
def test_ties_are_broken_by_item_and_never_in_favour_of_the_target(seed: int, k: int) -> None:
    """Over all orders of tied items scikit-learn's mean over ties is met exactly: no target is ever preferred."""
    rng = np.random.default_rng(seed)
    scores = np.repeat(rng.integers(0, 3, size=(1, 8)).astype(float), 8, axis=0)
    ranks = target_ranks(top_k(scores, [np.empty(0, int)] * 8, 20)[0], np.arange(8))
    assert sorted(ranks.tolist()) == list(range(8))
    same = accuracy(ranks)[f"ndcg@{k}"]
    for value in set(scores[0].tolist()):
        tied = scores[0] == value
        theirs = [ndcg_score(np.eye(8)[[item]], scores[:1], k=min(k, 8)) for item in np.flatnonzero(tied)]
        assert math.isclose(same[tied].mean(), float(np.mean(theirs)), abs_tol=1e-12)


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 5, 10, 20]))
def test_a_target_that_was_not_ranked_gains_nothing_as_in_scikit_learn(seed: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    scores, target = rng.permutation(30).astype(float)[None], np.array([rng.integers(0, 30)])
    places = top_k(scores, [target], 20)[0]
    assert target[0] not in places[0]
    last = scores.copy()
    last[0, target] = -1.0
    assert accuracy(target_ranks(places, target))[f"ndcg@{k}"][0] == ndcg_score(np.eye(30)[target], last, k=k) == 0.0


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
