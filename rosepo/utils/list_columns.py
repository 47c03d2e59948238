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
