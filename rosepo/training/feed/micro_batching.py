"""Which rows of a step share a micro-batch. The gradient of a step is a sum over its rows, so this changes nothing but
speed and memory."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from rosepo.lm.rows.collate import padded_size
from rosepo.lm.rows.rows import Row


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
