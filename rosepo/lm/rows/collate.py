"""Rows put together into the padded arrays of a batch, several short rows packed into one where that is asked for.

All numpy: these arrays travel through Ray Data from the actors that make them, which load no torch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rosepo.lm.rows.rows import Row

PAD = -1


def padded_size(n: int, multiple: int = 16) -> int:
    """The smallest of a few sizes that holds n: multiples of ``multiple``, from 16 of them on eight sizes an octave.

    Few sizes, because on a CPU every new bfloat16 shape costs a compilation; beyond 8 * multiple at most a ninth of the
    size is padding.
    """
    step = multiple
    while n > 16 * step:
        step *= 2
    return max(step, -(-n // step) * step)


def pack_lengths(lengths: Sequence[int], pack_tokens: int | None) -> list[list[int]]:
    """Places of rows in lists of rows that share one line of at most ``pack_tokens`` tokens, all about equally full.

    A longer row has a line to itself; None gives every row its own. Each place stands in exactly one list.
    """
    if pack_tokens is None or len(lengths) < 2:
        return [[place] for place in range(len(lengths))]
    capacity = max(pack_tokens, *lengths)
    order = np.argsort(np.negative(lengths), kind="stable")
    for count in range(-(-sum(lengths) // capacity), len(lengths)):
        # Longest first, each to the line with the most room: with lines of like length little of the batch is padding.
        lines: list[list[int]] = [[] for _ in range(count)]
        filled = np.zeros(count, dtype=np.int64)
        for place in order.tolist():
            line = int(np.argmin(filled))
            lines[line].append(place)
            filled[line] += lengths[place]
        if filled.max() <= capacity:
            return lines
    return [[place] for place in range(len(lengths))]


def padded_tokens(lengths: Sequence[int], *, pad_multiple: int = 16, pack_tokens: int | None = None) -> int:
    """Tokens, padding included, of the lines that `collate_numpy` makes of rows of these lengths; at least one row."""
    lines = pack_lengths(lengths, pack_tokens)
    longest = max(sum(lengths[place] for place in line) for line in lines)
    return len(lines) * padded_size(longest, pad_multiple)


def collate_numpy(
    rows: Sequence[Row], *, pad_multiple: int = 16, pad_to: int | None = None, pack_tokens: int | None = None
) -> dict[str, np.ndarray]:
    """The arrays of `batch.Batch`, int32, `weights` float32 where a row has some: its fields say what each holds.

    Args:
        pad_multiple: see `padded_size`.
        pad_to: pad lines to this many tokens instead of the size that `padded_size` gives for the longest line.
        pack_tokens: see `pack_lengths`.

    Raises:
        ValueError: no rows, or a line longer than ``pad_to``.
    """
    lines = pack_lengths([len(row) for row in rows], pack_tokens)
    longest = max((sum(len(rows[place]) for place in line) for line in lines), default=0)
    length = padded_size(longest, pad_multiple) if pad_to is None else pad_to
    if not rows or longest > length:
        raise ValueError(f"{len(rows)} rows, the longest of {longest} tokens, cannot be padded to {length} tokens")
    shape = (len(lines), length)
    input_ids, attach = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    position_ids = np.tile(np.arange(length, dtype=np.int32), (len(lines), 1))
    segment, document = np.full(shape, PAD, np.int32), np.full(shape, PAD, np.int32)
    starts = np.zeros(len(rows), dtype=np.int64)
    for index, line in enumerate(lines):
        start = 0
        for number, place in enumerate(line):
            row, part = rows[place], np.s_[start : start + len(rows[place])]
            input_ids[index, part], position_ids[index, part] = row.input_ids, row.position_ids
            segment[index, part], document[index, part] = row.segment, number
            attach[index, part] = np.where(row.segment > 0, row.attach + start, 0)
            starts[place] = index * length + start
            start += len(row)
    if (segment > 0).any() or (document > 0).any():
        position_ids[segment == PAD] = 0
    row_offsets = np.cumsum([0, *(row.n_completions for row in rows)])
    flat = np.concatenate([row.predict_at + start for row, start in zip(rows, starts, strict=True)])
    owners = np.concatenate([row.completion + row_offsets[index] for index, row in enumerate(rows)])
    order = np.argsort(flat, kind="stable")
    positions, source = np.unique(flat[order], return_inverse=True)
    gather = np.zeros(padded_size(len(positions), 4 * pad_multiple), np.int32)
    gather[: len(positions)] = positions
    arrays: dict[str, np.ndarray] = {
        "input_ids": input_ids,
        "position_ids": position_ids,
        "segment": segment,
        "document": document,
        "attach": attach,
        "gather": gather,
        "source": source,
        "targets": np.concatenate([row.targets for row in rows])[order],
        "completion": owners[order],
        "row_offsets": row_offsets,
    }
    made = {name: array.astype(np.int32) for name, array in arrays.items()}
    if any(row.weights is not None for row in rows):
        weights = [np.ones(len(row.targets), np.float32) if row.weights is None else row.weights for row in rows]
        made["weights"] = np.concatenate(weights)[order].astype(np.float32)
    return made
