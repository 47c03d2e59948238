"""NumPy arrays as list columns of Arrow tables."""

from __future__ import annotations

import numpy as np
import pyarrow as pa


def lists(arrays: list[np.ndarray]) -> pa.ListArray:
    """One list<int32> entry an array."""
    offsets = np.cumsum([0, *(len(array) for array in arrays)]).astype(np.int32)
    return pa.ListArray.from_arrays(offsets, pa.array(np.concatenate(arrays), type=pa.int32()))


def nested(rows: list[list[np.ndarray]]) -> pa.ListArray:
    """One list<list<int32>> entry a row."""
    offsets = np.cumsum([0, *(len(row) for row in rows)]).astype(np.int32)
    return pa.ListArray.from_arrays(offsets, lists([array for row in rows for array in row]))


def fixed(values: np.ndarray) -> pa.FixedSizeListArray:
    """One entry of fixed length a row of a matrix, which may have more values than a list column can count."""
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])


def matrix(values: np.ndarray, kind: pa.DataType) -> pa.ListArray:
    """One list entry a row of a matrix."""
    offsets = (np.arange(len(values) + 1) * values.shape[1]).astype(np.int32)
    return pa.ListArray.from_arrays(offsets, pa.array(values.ravel(), type=kind))
