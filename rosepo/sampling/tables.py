"""NumPy arrays as list columns of Arrow tables."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from rosepo.utils.list_columns import list_column


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
