"""Which rows of a step share a micro-batch. The gradient of a step is a sum over its rows, so this changes nothing but
speed and memory."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np

from rosepo.config import TrainConfig
from rosepo.lm.rows.collate import padded_size, padded_tokens
from rosepo.lm.rows.rows import Row


def most_tokens(train: TrainConfig, full_row: int) -> int:
    """Tokens of a micro-batch at most, padding included: those that were set, or as many as `micro_batch_size` rows of
    `full_row` tokens have. What a user brings beyond it takes turns."""
    return train.micro_batch_tokens or train.micro_batch_size * padded_size(full_row)


def bounded(
    parts: Sequence[Sequence[int]],
    lengths: Sequence[int],
    most: int | None,
    *,
    pad_multiple: int = 16,
    pack_tokens: int | None = None,
) -> list[list[int]]:
    """Lists of places as they are, but for empty ones, which are left out, and those that take more than `most` tokens
    when they are put together, which are cut into as few as hold it, filled one after another.

    Args:
        parts: places of rows; every list in order of their lengths, the shortest first.
        lengths: of all rows.
        most: None cuts nothing. A row that has more tokens is a list of its own.
        pad_multiple, pack_tokens: with which `collate_numpy` puts the rows of a list together.
    """
    if most is None:
        return [list(part) for part in parts if len(part)]

    def fit(places: Sequence[int]) -> bool:
        found = [lengths[place] for place in places]
        return padded_tokens(found, pad_multiple=pad_multiple, pack_tokens=pack_tokens) <= most

    cut = []
    for part in parts:
        start = 0
        while start < len(part):
            stop = _reach(part, start, fit)
            cut.append(list(part[start:stop]))
            start = stop
    return cut


def _reach(places: Sequence[int], start: int, fit: Callable[[Sequence[int]], bool]) -> int:
    """Where a list from `start` on ends that is as long as fits, and one place at least."""
    low, high = start + 1, len(places)
    if low < high and fit(places[start:]):
        return high
    while low < high:  # what is kept has been looked at: packed, more rows may now and then take fewer tokens
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fit(places[start:middle]) else (low, middle - 1)
    return low


def shared_out(rows: Sequence[Row], parts: int, pack_tokens: int | None = None) -> list[list[int]]:
    """Places of the rows in `parts` lists: of rows of like length, so that little of a micro-batch is padding, or,
    where rows are packed, with like numbers of tokens.

    The gradient of a step is a sum over its rows, so how they are put together changes nothing but speed.
    """
    order = np.argsort([len(row) for row in rows], kind="stable")
    if pack_tokens is not None:
        return [order[part::parts].tolist() for part in range(parts)]
    return [part.tolist() for part in np.array_split(order, parts)]


def shared_by_tokens(lengths: Sequence[int], parts: int) -> list[list[int]]:
    """Places of rows in `parts` lists of rows of like length that take about as many tokens when they are padded.

    Rows of users differ by far in length: as many rows in every list would put most tokens, and memory, into one.
    """
    order = np.argsort(lengths, kind="stable")
    padded = [padded_size(lengths[place]) for place in order]
    low, high = max(padded, default=0), len(padded) * max(padded, default=0)
    while low < high:  # the smallest list that needs no more than `parts` of its size
        middle = (low + high) // 2
        low, high = (low, middle) if len(_filled(padded, middle)) <= parts else (middle + 1, high)
    bounds = _filled(padded, low) if padded else []
    bounds = [0, *bounds, *[len(order)] * (parts - len(bounds))]
    return [order[start:stop].tolist() for start, stop in itertools.pairwise(bounds)]


def _filled(padded: list[int], tokens: int) -> list[int]:
    """Where lists of at most `tokens` padded tokens end, filled one after another with rows of growing length."""
    ends, start = [], 0
    for place, length in enumerate(padded):
        if place > start and (place - start + 1) * length > tokens:
            ends.append(place)
            start = place
    return [*ends, len(padded)]
