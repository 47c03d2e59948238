"""Who trains on what: parts of every user's sequence, the window of each history, and rows that share histories.

A user's sequence is ordered by time; its part `train` comes before `validation`, and that before `test`. The example
at position t has item t as target and (a window of) the items before t as history.
"""

from __future__ import annotations

import numpy as np

from rosepo.utils.arrays import segment_starts

SPLITS = ("train", "validation", "test")


def leave_one_out(lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where validation and test begin in sequences of `lengths` [n_users]: the last item is test, the one before it
    validation; a user with fewer contributes what there is."""
    return np.maximum(lengths - 2, 0), np.maximum(lengths - 1, 0)


def temporal(
    starts: np.ndarray, lengths: np.ndarray, time: np.ndarray, validation_from: float, test_from: float
) -> tuple[np.ndarray, np.ndarray]:
    """Where validation and test begin in each user's sequence, for cuts in global time.

    Args:
        starts: [n_users] where each sequence begins in `time`.
        lengths: [n_users] their lengths.
        time: [n] ordered within each user.
        validation_from: first moment of validation; everything before it trains.
        test_from: first moment of test.
    """
    if not len(lengths):
        return lengths, lengths
    before_validation = np.add.reduceat((time < validation_from).astype(np.int64), starts)
    before_test = np.add.reduceat((time < test_from).astype(np.int64), starts)
    return before_validation, before_test


def window_starts(
    position: np.ndarray, in_train: np.ndarray, max_history: int, min_history: int, window: str
) -> np.ndarray:
    """Where the history of each example begins [n] int64, at most `max_history` before its position.

    Training histories under `anchored` begin at 0 as long as they fit, then at the smallest multiple of a stride (half
    of `max_history`, less where `min_history` asks for longer histories) that makes them fit: so they are prefixes of
    one another in long runs. All others keep the newest `max_history` items.
    """
    newest = np.maximum(position - max_history, 0)
    if window == "sliding":
        return newest
    stride = max(1, min(max_history // 2, max_history - min_history + 1))
    anchored = -(-newest // stride) * stride
    return np.where(in_train, anchored, newest)


def trajectories(user: np.ndarray, start: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Group training examples whose histories begin at one place: each group is one row of a shared prefix.

    Args:
        user: [n] of the examples, ordered by user and position.
        start: [n] where their histories begin.

    Returns:
        The first example of each group and the number of examples in it, int64.
    """
    if not len(user):
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    first = np.union1d(segment_starts(user), segment_starts(start))
    return first, np.diff(np.append(first, len(user)))
