from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rosepo.metrics import bias


def test_popularity_of_hand_made_rankings() -> None:
    popularity = bias.Popularity.of(np.array([99, 0, 9, 9, 9, 9, 9, 9, 9, 9]))
    series = bias.popularity_series(np.array([[0, 1], [2, -1], [-1, -1]]), popularity)
    assert series["log_popularity"][:2] == pytest.approx([math.log(100) / 2, math.log(10)])
    assert series["head_share"][:2].tolist() == [0.5, 0.0]
    assert np.isnan(series["log_popularity"][2])


def test_concentration_of_even_and_of_single_exposure() -> None:
    assert bias.concentration(np.array([3, 3, 3, 3])) == pytest.approx({"gini": 0.0, "coverage": 1.0})
    assert bias.concentration(np.array([0, 0, 0, 8])) == pytest.approx({"gini": 0.75, "coverage": 0.25})


@given(st.lists(st.integers(0, 50), min_size=1, max_size=20).filter(any))
def test_gini_equals_the_mean_absolute_difference(counts: list[int]) -> None:
    values = np.array(counts, dtype=float)
    expected = np.abs(values[:, None] - values[None]).mean() / (2 * values.mean())
    assert bias.gini(np.array(counts)) == pytest.approx(expected)


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(1, 30))
def test_concentration_follows_from_the_lorenz_curve_of_the_lists(seed: int, n_items: int) -> None:
    """Gini is one minus twice the area under the Lorenz curve, coverage the share of distinct titles in the lists."""
    rng = np.random.default_rng(seed)
    lists = [rng.permutation(n_items)[: rng.integers(1, n_items + 1)].tolist() for _ in range(5)]
    padded = np.full((5, n_items), -1)
    for row, items in enumerate(lists):
        padded[row, : len(items)] = items
    found = bias.concentration(bias.exposure(padded, n_items))
    flat = [item for items in lists for item in items]
    curve = np.concatenate([[0], np.cumsum(sorted(flat.count(item) for item in range(n_items)))]) / len(flat)
    assert found["gini"] == pytest.approx(1 - 2 * np.trapezoid(curve, dx=1 / n_items), abs=1e-12)
    assert found["coverage"] == pytest.approx(len(set(flat)) / n_items)


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1))
def test_series_equal_a_slow_loop_with_places_that_hold_no_title(seed: int) -> None:
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 9, size=12)
    items = np.stack([rng.permutation(12)[:6] for _ in range(4)])
    items[rng.random(items.shape) < 0.3] = -1
    targets, similarity, truth = rng.integers(0, 12, size=4), rng.random((4, 6)), rng.random(4)
    found = bias.popularity_series(items, bias.Popularity.of(counts))
    found |= bias.hallucination_series(items, targets, similarity, truth)
    head = sorted(range(12), key=lambda item: (-counts[item], item))[:1]
    for row in range(4):
        there = [item for item in items[row].tolist() if item >= 0]
        wrong = [place for place, item in enumerate(items[row].tolist()) if item not in (-1, targets[row])]
        expected = {
            "log_popularity": np.mean([math.log(1 + counts[item]) for item in there]) if there else math.nan,
            "head_share": np.mean([item in head for item in there]) if there else math.nan,
            "hallucination": similarity[row, wrong].mean() - truth[row] if wrong else math.nan,
            "hallucination@1": similarity[row, 0] - truth[row] if 0 in wrong else math.nan,
        }
        for key, value in expected.items():
            assert found[key][row] == pytest.approx(value, nan_ok=True)


def test_exposure_leaves_padding_out() -> None:
    assert bias.exposure(np.array([[0, 2], [2, -1]]), 4).tolist() == [1, 0, 2, 0]


def test_hallucination_counts_wrong_titles_alone() -> None:
    items, targets = np.array([[3, 1, 2], [0, 1, -1], [5, -1, -1]]), np.array([3, 4, 5])
    similarity = np.array([[0.9, 0.2, 0.4], [0.6, 0.0, 0.0], [1.0, 0.0, 0.0]])
    series = bias.hallucination_series(items, targets, similarity, truth=np.array([0.1, 0.5, 1.0]))
    assert series["look_alike"][:2] == pytest.approx([0.3, 0.3])
    assert series["hallucination"][:2] == pytest.approx([0.2, -0.2])
    assert np.isnan(series["hallucination@1"][0])  # the first place is right
    assert series["hallucination@1"][1] == pytest.approx(0.1)
    assert np.isnan(series["hallucination"][2])  # nothing is wrong


def test_likeness_is_the_product_with_the_profile() -> None:
    embeddings = np.eye(3, dtype=np.float32)
    profiles = np.array([[0.25, 0.75, 0.0]], dtype=np.float32)
    assert bias.likeness(embeddings, profiles, np.array([[1, 0, -1]]))[0].tolist() == [0.75, 0.25, 0.0]
