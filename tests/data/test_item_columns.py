"""Item indexes in tables: read back whatever the chunks, never taken for what is none, never wrapped around."""

from __future__ import annotations

import itertools

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rosepo.data.item_columns import INDEX, flat_items, item_lists, item_matrix, items_of
from rosepo.utils.errors import StageError, UserError
from rosepo.utils.list_columns import MOST_VALUES, list_column

lists_of_items = st.lists(st.lists(st.integers(0, 2**31 - 1), max_size=4), max_size=8)


@given(lists_of_items, st.sampled_from([pa.list_, pa.large_list]), st.integers(0, 8), st.integers(0, 8))
def test_lists_come_back_whatever_the_chunks(lists: list[list[int]], kind: object, cut: int, first: int) -> None:
    whole = pa.table({"items": pa.array(lists, kind(INDEX))})  # type: ignore[operator]
    table = pa.concat_tables([whole.slice(0, cut), whole.slice(cut)]).slice(first)
    items, offsets = flat_items(table, "items")
    expected = lists[first:]
    assert [items[low:high].tolist() for low, high in itertools.pairwise(offsets)] == expected
    assert [part.tolist() for part in item_lists(table, "items", np.int32)] == expected
    assert items.dtype == offsets.dtype == np.int64


def test_lists_of_one_length_are_a_matrix() -> None:
    table = pa.table({"target": pa.array([5, 7], INDEX), "candidates": pa.array([[1, 5], [7, 2]], pa.list_(INDEX))})
    assert item_matrix(table, "candidates").tolist() == [[1, 5], [7, 2]]
    assert item_matrix(table.slice(0, 0), "candidates").shape == (0, 0)
    # A product with an index must not wrap, as int32 would.
    assert (items_of(table, "target") * 2**30).tolist() == [5 * 2**30, 7 * 2**30]


@pytest.mark.parametrize("kind", [pa.int64(), pa.string()])
def test_item_ids_are_not_read_as_indexes(kind: pa.DataType) -> None:
    ids = pa.array([1, 2], pa.int64()).cast(kind)
    table = pa.table({"target": ids, "history": pa.array([ids.to_pylist()] * 2, pa.list_(kind))})
    for read, name in ((items_of, "target"), (item_lists, "history"), (item_matrix, "history")):
        with pytest.raises(
            UserError, match=rf"column '{name}' holds {kind} .*run `rosepo prepare` and the stages after"
        ):
            read(table, name)


@given(st.lists(st.lists(st.integers(0, 9), max_size=3), max_size=5))
def test_a_list_column_holds_the_lists_end_to_end(lists: list[list[int]]) -> None:
    values = np.array([item for items in lists for item in items], dtype=np.int32)
    assert list_column(values, np.array([len(items) for items in lists], dtype=np.int64)).to_pylist() == lists


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_more_values_than_offsets_can_count_are_refused(dtype: type) -> None:
    with pytest.raises(StageError, match=f"2,147,483,648 values are more .*{MOST_VALUES:,}"):
        list_column(np.empty(0, dtype=np.int32), np.array([2**30, 2**30], dtype=dtype))
