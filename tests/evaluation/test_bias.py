from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rosepo.evaluation import bias


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
