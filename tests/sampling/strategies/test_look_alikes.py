"""The most similar titles: in item order where they are equal, none excluded, whatever is held at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rosepo.sampling.strategies.example_batch import Examples
from rosepo.sampling.strategies.look_alikes import LookAlikes, top_similar
from tests.helpers import examples_of
from tests.sampling.strategies.test_strategies import batches, check_promises, forbidden


def embeddings_of(n_items: int, size: int = 4) -> np.ndarray:
    """Random unit rows, the same ones for equal arguments."""
    vectors = np.random.default_rng(1).normal(size=(n_items, size)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def expected_of(scores: np.ndarray, examples: Examples, row: int, count: int) -> list[int]:
    """The best items of a row by its `scores` [n_items], equal ones in item order."""
    left = [item for item in range(examples.n_items) if item not in forbidden(examples, row)]
    return sorted(left, key=lambda item: -scores[item])[:count]


@settings(max_examples=80)
@given(batches(), st.integers(1, 4), st.integers(1, 5))
def test_look_alikes_are_distinct_and_outside_history_and_target(examples: Examples, count: int, top: int) -> None:
    check_promises(examples, LookAlikes(embeddings_of(examples.n_items), 0.9, top), count)


@settings(max_examples=60)
@given(batches(), st.integers(1, 8), st.sampled_from([1, 40, 10**6]))
def test_no_other_item_is_more_similar(examples: Examples, count: int, cells: int) -> None:
    embeddings = embeddings_of(examples.n_items)
    profiles = embeddings_of(len(examples) + 3)[: len(examples)]
    found = top_similar(torch.from_numpy(embeddings), torch.from_numpy(profiles), examples.excluded, count, cells)
    assert found.shape == (len(examples), count)
    for row, items in enumerate(found.tolist()):
        scores = embeddings.astype(np.float64) @ profiles[row]
        expected = expected_of(scores, examples, row, count)
        got = [item for item in items if item >= 0]
        assert items == got + [-1] * (count - len(got))
        assert len(got) == len(expected)
        np.testing.assert_allclose(scores[got], scores[expected], atol=1e-6)
        assert len(set(got)) == len(got)
        assert not set(got) & forbidden(examples, row)


@settings(max_examples=100)
@given(batches(), st.integers(1, 8), st.sampled_from([1, 40, 10**6]), st.integers(1, 4))
def test_equally_similar_items_come_in_item_order(examples: Examples, count: int, cells: int, kinds: int) -> None:
    # Few different vectors of eighths: their products are exact in float32, and most items are equally similar.
    random = np.random.default_rng(kinds)
    embeddings = (random.integers(-4, 5, (kinds, 65)) / 8).astype(np.float32)[np.arange(examples.n_items) % kinds]
    profiles = (random.integers(-4, 5, (len(examples), 65)) / 8).astype(np.float32)
    profiles[::3] = 0  # an example without a history
    found = top_similar(torch.from_numpy(embeddings), torch.from_numpy(profiles), examples.excluded, count, cells)
    for row, items in enumerate(found.tolist()):
        expected = expected_of(embeddings @ profiles[row], examples, row, count)
        assert items == expected + [-1] * (count - len(expected))


@pytest.mark.gpu
def test_a_gpu_finds_the_same_titles() -> None:
    embeddings, n = embeddings_of(5_000, 64), 200
    random = np.random.default_rng(0)
    histories = [random.integers(0, 5_000, 12) for _ in range(n)]
    examples = examples_of([str(row) for row in range(n)], histories, random.integers(0, 5_000, n), 5_000)
    draws = np.random.default_rng(1).random((3, n))
    one, other = (LookAlikes(embeddings, 0.9, 20, device) for device in ("cpu", "cuda"))
    same = one(examples, 3, draws.__getitem__) == other(examples, 3, draws.__getitem__)
    assert same.mean() > 0.99
