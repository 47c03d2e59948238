"""Items in a run's tables: int32 *item indexes*, rows of `examples/_items.parquet`, which alone knows their ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import DTypeLike

from rosepo.utils.arrays import ranges
from rosepo.utils.errors import UserError

INDEX = pa.int32()
"""Type of an item index in a table. Arrays are int64 unless asked for otherwise: products with it do not wrap."""


@dataclass(frozen=True)
class ItemLists:
    """Lists of item indexes end to end: `items[offsets[i]:offsets[i + 1]]`, so that millions are two arrays."""

    items: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """Items of each list, int64 [n]."""
        return np.diff(self.offsets)

    def rows(self, rows: np.ndarray) -> list[np.ndarray]:
        """The lists at `rows`."""
        return [self.items[self.offsets[row] : self.offsets[row + 1]] for row in rows]

    def take(self, rows: np.ndarray) -> ItemLists:
        """The lists at `rows`, end to end."""
        lengths = self.lengths[rows]
        return ItemLists(self.items[ranges(self.offsets[rows], lengths)], np.append(0, np.cumsum(lengths)))

    @classmethod
    def joined(cls, parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> ItemLists:
        """The lists of parts that `flat_items` gave, one behind the other; there is one part at least."""
        lengths = np.concatenate([np.diff(offsets) for _, offsets in parts])
        return cls(np.concatenate([items for items, _ in parts]), np.append(0, np.cumsum(lengths)))


def items_of(table: pa.Table, name: str) -> np.ndarray:
    """A column of item indexes as int64 [n]; -1 for a null.

    Raises:
        UserError: the column holds anything else, as tables of an earlier version do.
    """
    _check_type(table[name].type, name)
    return _numpy(table[name], np.int64)


def flat_items(table: pa.Table, name: str, dtype: DTypeLike = np.int64) -> tuple[np.ndarray, np.ndarray]:
    """A column of lists of item indexes: all of them end to end, and where each list begins, int64 [n + 1]; see
    `items_of`."""
    column = table[name]
    _check_type(column.type.value_type, name)
    items, lengths = _numpy(pc.list_flatten(column), dtype), pc.list_value_length(column).to_numpy()
    return items, np.append(0, np.cumsum(lengths, dtype=np.int64))


def item_lists(table: pa.Table, name: str, dtype: DTypeLike = np.int64) -> list[np.ndarray]:
    """A column of lists of item indexes, one array a row; see `items_of`."""
    items, offsets = flat_items(table, name, dtype)
    return np.split(items, offsets[1:-1]) if len(table) else []  # split() makes one part of nothing


def item_matrix(table: pa.Table, name: str) -> np.ndarray:
    """A column of n lists of m item indexes each, int64 [n, m]; see `items_of`."""
    items, _ = flat_items(table, name)
    return items.reshape(len(table), -1) if len(table) else items.reshape(0, 0)


def _numpy(indexes: pa.ChunkedArray, dtype: DTypeLike) -> np.ndarray:
    whole = indexes.fill_null(-1) if indexes.null_count else indexes
    found: np.ndarray = whole.to_numpy().astype(dtype, copy=False)
    return found


def _check_type(kind: pa.DataType, name: str) -> None:
    if kind != INDEX:
        raise UserError(
            f"column '{name}' holds {kind} where item indexes ({INDEX}) are expected: another version of rosepo wrote "
            "the table, run `rosepo prepare` and the stages after it again"
        )
