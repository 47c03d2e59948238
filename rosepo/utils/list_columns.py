"""NumPy arrays as list columns of Arrow tables."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from rosepo.utils.errors import StageError

MOST_VALUES = 2**31 - 1
"""Values of a list column: its offsets are int32, and a running sum cast to that would wrap around without a word."""


def list_column(values: np.ndarray | pa.Array, lengths: np.ndarray) -> pa.ListArray:
    """Lists that stand end to end in `values`.

    Args:
        values: [sum of lengths].
        lengths: int [n], of each list.

    Raises:
        StageError: more values than a list column can count.
    """
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    if offsets[-1] > MOST_VALUES:
        raise StageError(f"{offsets[-1]:,} values are more than a list column can count ({MOST_VALUES:,})")
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), values)


def lists(arrays: list[np.ndarray]) -> pa.ListArray:
    """One list<int32> entry an array."""
    return list_column(pa.array(np.concatenate(arrays), type=pa.int32()), np.array([len(array) for array in arrays]))


def nested(rows: list[list[np.ndarray]]) -> pa.ListArray:
    """One list<list<int32>> entry a row."""
    return list_column(lists([array for row in rows for array in row]), np.array([len(row) for row in rows]))


def fixed(values: np.ndarray) -> pa.FixedSizeListArray:
    """One entry of fixed length a row of a matrix, which may have more values than a list column can count."""
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])


def matrix(values: np.ndarray, kind: pa.DataType) -> pa.ListArray:
    """One list entry a row of a matrix."""
    return list_column(pa.array(values.ravel(), type=kind), np.full(len(values), values.shape[1]))
