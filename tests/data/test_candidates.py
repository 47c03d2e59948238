from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rosepo.data.candidates import candidate_lists
from rosepo.data.prepare.prepare import inspect_data
from rosepo.utils.errors import UserError
from tests.data.tables import config_for, prepared, write_data


def draw(lengths: list[int], n_items: int, n: int, seed: int = 0) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
    """Lists for every position ≥ 1 of random sequences, with the history of each and the target."""
    rng = np.random.default_rng(seed)
    sequence = np.concatenate([rng.permutation(n_items)[:length] for length in lengths])
    start = np.cumsum([0, *lengths[:-1]])
    owner = np.concatenate([np.full(length - 1, user) for user, length in enumerate(lengths)]).astype(np.int64)
    position = np.concatenate([np.arange(1, length) for length in lengths])
    names = np.array([f"{u}:{p}" for u, p in zip(owner, position)], dtype=object)
    lists = candidate_lists(names, sequence, start, owner, position, n, n_items, seed)
    histories = [sequence[start[u] : start[u] + p] for u, p in zip(owner, position)]
    return lists, histories, sequence[start[owner] + position]


@settings(max_examples=50, deadline=None)
@given(
    lengths=st.lists(st.integers(2, 8), min_size=1, max_size=6),
    n_items=st.integers(14, 40),
    n=st.integers(2, 7),
    seed=st.integers(0, 2**32 - 1),
)
def test_candidates_are_distinct_and_hold_the_target_and_none_of_the_history(
    lengths: list[int], n_items: int, n: int, seed: int
) -> None:
    lists, histories, targets = draw(lengths, n_items, n, seed)
    for row, history, target in zip(lists, histories, targets):
        assert len(set(row.tolist())) == n
        assert target in row
        assert not set(row.tolist()) & set(history.tolist())
        assert ((row >= 0) & (row < n_items)).all()


def test_a_list_that_takes_every_free_item_is_found() -> None:
    lists, histories, _ = draw([5], n_items=8, n=4)
    assert set(lists[-1].tolist()) == set(range(8)) - set(histories[-1].tolist())


def test_neither_slot_nor_negatives_tell_the_target() -> None:
    n, n_items = 10, 60
    lists, histories, targets = draw([9] * 3_000, n_items, n)
    slot = np.argmax(lists == targets[:, None], axis=1)
    counts = np.bincount(slot, minlength=n)
    chance = len(slot) / n
    assert ((counts - chance) ** 2 / chance).sum() < 30  # chi-square, 9 degrees of freedom: p < .0005
    # A rule that learns the favourite slot of each target on one half stays at chance on the other.
    half = len(slot) // 2
    table = np.zeros((n_items, n))
    np.add.at(table, (targets[:half], slot[:half]), 1)
    guess = table.argmax(axis=1)
    hit = (lists[np.arange(half, 2 * half), guess[targets[half : 2 * half]]] == targets[half : 2 * half]).mean()
    assert abs(hit - 1 / n) < 4 * np.sqrt(0.09 / half)
    # Negatives are uniform over what is free.
    free = np.zeros(n_items)
    for history, target in zip(histories, targets):
        mask = np.ones(n_items, dtype=bool)
        mask[history] = mask[target] = False
        free[mask] += (n - 1) / mask.sum()
    drawn = np.bincount(lists.ravel(), minlength=n_items) - np.bincount(targets, minlength=n_items)
    assert np.abs(drawn / free - 1).max() < 0.05


def test_another_target_leaves_slot_and_surviving_negatives_in_place() -> None:
    names = np.array(["7:2"], dtype=object)
    start, owner, position = np.array([0]), np.array([0]), np.array([2])
    first = candidate_lists(names, np.array([3, 5, 11]), start, owner, position, 8, 1_000, 1)[0]
    second = candidate_lists(names, np.array([3, 5, 900]), start, owner, position, 8, 1_000, 1)[0]
    assert np.argmax(first == 11) == np.argmax(second == 900)
    assert (np.delete(first, np.argmax(first == 11)) == np.delete(second, np.argmax(second == 900))).all()


def test_lists_follow_the_seed_and_the_example_alone() -> None:
    lists, _, _ = draw([6, 4], 40, 5, seed=3)
    again, _, _ = draw([6, 4], 40, 5, seed=3)
    assert (lists == again).all()


def test_prepare_writes_candidates_and_says_when_the_catalogue_is_too_small(tmp_path: Path) -> None:
    rows = [(user, item, None, float(item)) for user in range(3) for item in range(user, user + 6)]
    data = write_data(tmp_path, rows, {item: f"t{item}" for item in range(8)})
    examples, _, _ = prepared(config_for(data, k_core=1, candidates=3))
    assert all(row["target"] in row["candidates"] and len(row["candidates"]) == 3 for row in examples)
    with pytest.raises(UserError, match=r"prepare.candidates=5 asks for 4 items outside the history.*6 of 8 items"):
        inspect_data(config_for(data, k_core=1, candidates=5))
