"""Runs and ranges in sorted arrays."""

from __future__ import annotations

import numpy as np


def segment_starts(sorted_values: np.ndarray) -> np.ndarray:
    """Places where a run of equal values begins, int64."""
    if not len(sorted_values):
        return np.empty(0, dtype=np.int64)
    return np.flatnonzero(np.append(True, sorted_values[1:] != sorted_values[:-1]))


def ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The integers start … start + length - 1 of every range, end to end, int64."""
    total = int(lengths.sum())
    ends = np.cumsum(lengths)
    return np.arange(total) - np.repeat(ends - lengths, lengths) + np.repeat(starts, lengths)
