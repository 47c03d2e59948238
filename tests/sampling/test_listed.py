"""Wrong candidates: what `self_hard` rejects where prompts list what can be answered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rosepo.sampling.draws import stream
from rosepo.sampling.examples import Examples
from rosepo.sampling.listed import WrongCandidates

N_ITEMS = 12


@st.composite
def batches(draw: st.DrawFn) -> Examples:
    """Examples with candidates outside their history, the target at a random slot, and prompts."""
    n, size = draw(st.integers(1, 5)), draw(st.integers(2, 5))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    orders = np.stack([rng.permutation(N_ITEMS) for _ in range(n)])
    histories = [row[: int(rng.integers(1, 6))] for row in orders]
    lists = orders[:, 6 : 6 + size]
    targets = lists[np.arange(n), rng.integers(size, size=n)]
    prompts = [np.arange(3)] * n
    made = Examples.of([f"{row}:9" for row in range(n)], histories, targets, N_ITEMS, prompts)
    return replace(made, candidates=lists)


def scores_of_items(_prompts: Sequence[np.ndarray], items: np.ndarray) -> np.ndarray:
    """Any fixed preference among items, with ties."""
    return -((items * 7 % N_ITEMS) // 2).astype(np.float32)


def drawn(examples: Examples, top: int, count: int) -> np.ndarray:
    return WrongCandidates(scores_of_items, top)(examples, count, stream(examples.keys, 0, "self_hard"))


@given(batches(), st.integers(1, 4), st.integers(1, 6))
def test_wrong_candidates_are_those_of_the_list_and_never_the_target(examples: Examples, top: int, count: int) -> None:
    items = drawn(examples, top, count)
    assert items.shape == (len(examples), count)
    assert examples.candidates is not None
    for row, target in enumerate(examples.targets):
        wrong = set(examples.candidates[row].tolist()) - {target}
        found = [item for item in items[row].tolist() if item >= 0]
        assert len(set(found)) == len(found) == min(count, len(wrong))
        assert set(found) <= wrong


@given(batches())
def test_the_hardest_wrong_candidate_is_the_likeliest_wherever_it_stands(examples: Examples) -> None:
    assert examples.candidates is not None
    lists, targets = examples.candidates.tolist(), examples.targets.tolist()
    expected = [
        min((item for item in row if item != target), key=lambda item: ((item * 7 % N_ITEMS) // 2, item))
        for row, target in zip(lists, targets, strict=True)
    ]
    assert drawn(examples, 1, 1)[:, 0].tolist() == expected
    turned = replace(examples, candidates=examples.candidates[:, ::-1])
    np.testing.assert_array_equal(drawn(turned, 3, 2), drawn(examples, 3, 2))


def test_prompts_and_candidates_are_needed() -> None:
    plain: Any = Examples.of(["a"], [np.array([1])], np.array([2]), N_ITEMS)
    with pytest.raises(ValueError, match="prompts and the candidates"):
        drawn(plain, 1, 1)
