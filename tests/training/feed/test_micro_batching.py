"""How many tokens a micro-batch may have."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rosepo.config import TrainConfig
from rosepo.lm.rows.collate import collate_numpy
from rosepo.lm.rows.rows import Row, group_row
from rosepo.training.feed.micro_batching import bounded, most_tokens, shared_by_tokens, shared_out


def rows_of(lengths: list[int]) -> list[Row]:
    return [group_row(np.zeros(length, np.int32), [np.zeros(1, np.int32)]) for length in lengths]


def computed(rows: list[Row], multiple: int, pack_tokens: int | None) -> int:
    return collate_numpy(rows, pad_multiple=multiple, pack_tokens=pack_tokens)["input_ids"].size


@given(
    st.lists(st.integers(1, 300), max_size=40),
    st.integers(1, 5),
    st.integers(1, 3000),
    st.sampled_from([None, 64, 200]),
    st.sampled_from([8, 16]),
    st.booleans(),
)
def test_every_row_is_in_one_micro_batch_that_holds_its_bound_or_the_row_alone(
    lengths: list[int], parts: int, most: int, pack_tokens: int | None, multiple: int, by_tokens: bool
) -> None:
    rows = rows_of(lengths)
    shared = shared_by_tokens(lengths, parts) if by_tokens else shared_out(rows, parts, pack_tokens)
    cut = bounded(shared, lengths, most, pad_multiple=multiple, pack_tokens=pack_tokens)
    # Every list is cut, and nothing else happens to it: no row is lost, and the order stays.
    assert [place for part in cut for place in part] == [place for part in shared for place in part]
    edges = np.cumsum([len(part) for part in shared if part]).tolist()
    assert set(edges) <= set(np.cumsum([len(part) for part in cut]).tolist())
    for part in cut:
        assert len(part) == 1 or computed([rows[place] for place in part], multiple, pack_tokens) <= most


@given(st.lists(st.integers(1, 300), min_size=1, max_size=40), st.integers(300, 3000))
def test_no_micro_batch_could_take_the_next_row_too(lengths: list[int], most: int) -> None:
    rows = rows_of(lengths)
    (shared,) = shared_out(rows, 1)
    cut = bounded([shared], lengths, most)
    for part, other in itertools.pairwise(cut):
        assert computed([rows[place] for place in [*part, other[0]]], 16, None) > most


@given(st.lists(st.integers(1, 300), max_size=40), st.integers(1, 5), st.sampled_from([None, 64]))
def test_without_a_bound_or_below_it_micro_batches_stay_as_they_are(
    lengths: list[int], parts: int, pack_tokens: int | None
) -> None:
    shared = shared_out(rows_of(lengths), parts, pack_tokens)
    for most in (None, 40 * 512):
        assert bounded(shared, lengths, most, pack_tokens=pack_tokens) == [part for part in shared if part]


@pytest.mark.parametrize(("settings", "most"), [({}, 4 * 112), ({"micro_batch_tokens": 70}, 70)])
def test_a_bound_that_is_not_set_is_that_of_full_rows_as_they_are_padded(settings: dict[str, int], most: int) -> None:
    assert most_tokens(TrainConfig(micro_batch_size=4, **settings), 100) == most
