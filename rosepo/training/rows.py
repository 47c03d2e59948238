"""Shared-prefix rows: a trunk of tokens that is computed once, and completions that branch off from it.

A completion attached at trunk position ``a`` sees the trunk's first ``a`` tokens, then its own, and nothing else; its
positions go on from ``a``. So its log-probability is the one that a row of its own would give. The first token of a
completion is predicted from the last token before it, and its last token (EOS) is predicted but never an input. A
completion that merely continues the trunk needs no tokens of its own: it is read off the trunk.

Rows and batches are numpy on the way (they travel through Ray Data as plain arrays) and torch at use.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

if TYPE_CHECKING:
    from rosepo.data.prompts import PromptBuilder

PAD_SEGMENT = -1


class Branch(NamedTuple):
    """One completion of a row."""

    attach: int
    """Trunk tokens that it sees."""
    tail: np.ndarray
    """Prompt tokens between the trunk and the completion (the template's suffix); may be empty."""
    completion: np.ndarray
    """Tokens that are predicted, EOS included."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the model: L input tokens, T predicted tokens, ``n_completions`` completions. All arrays int32."""

    input_ids: np.ndarray
    """[L]"""
    position_ids: np.ndarray
    """[L]; restarts at the attach point in every branch."""
    segment: np.ndarray
    """[L]; 0 is the trunk, b ≥ 1 a branch."""
    attach: np.ndarray
    """[L]; trunk tokens that a branch's token sees; 0 on the trunk."""
    predict_at: np.ndarray
    """[T]; index in the row of the token that predicts each target."""
    targets: np.ndarray
    """[T]"""
    completion: np.ndarray
    """[T]; which completion each target belongs to."""
    n_completions: int

    def __len__(self) -> int:
        return len(self.input_ids)


def build_row(trunk: np.ndarray, branches: Sequence[Branch]) -> Row:
    """The row of a trunk (int [n]) and its completions, in the order given.

    Raises:
        ValueError: an empty completion, an attach point outside the trunk, or a completion with nothing before it.
    """
    trunk = np.asarray(trunk, dtype=np.int32)
    n = len(trunk)
    tokens, positions, segments, attaches = [trunk], [np.arange(n)], [np.zeros(n)], [np.zeros(n)]
    predict_at, targets, owners = [], [], []
    length, segment = n, 0
    for owner, (attach, tail, completion) in enumerate(branches):
        if not 0 <= attach <= n:
            raise ValueError(f"completion {owner} attaches at {attach}, outside a trunk of {n} tokens")
        if len(completion) == 0 or attach + len(tail) == 0:
            raise ValueError(f"completion {owner} is empty or has no token before it")
        inputs = np.concatenate([tail, completion[:-1]]).astype(np.int32)
        if np.array_equal(trunk[attach : attach + len(inputs)], inputs):
            at = np.arange(attach - 1, attach + len(inputs))
        else:
            segment += 1
            tokens.append(inputs)
            positions.append(np.arange(attach, attach + len(inputs)))
            segments.append(np.full(len(inputs), segment))
            attaches.append(np.full(len(inputs), attach))
            at = np.concatenate([[attach - 1], np.arange(length, length + len(inputs))])
            length += len(inputs)
        predict_at.append(at[len(tail) :])
        targets.append(completion)
        owners.append(np.full(len(completion), owner))
    return Row(
        input_ids=_int32(tokens),
        position_ids=_int32(positions),
        segment=_int32(segments),
        attach=_int32(attaches),
        predict_at=_int32(predict_at),
        targets=_int32(targets),
        completion=_int32(owners),
        n_completions=len(branches),
    )


def group_row(prompt_ids: np.ndarray, completions: Sequence[np.ndarray]) -> Row:
    """A prompt once, then its completions (each with EOS), chosen first. The first one lies on the trunk itself."""
    prompt_ids = np.asarray(prompt_ids, dtype=np.int32)
    none = prompt_ids[:0]
    trunk = np.concatenate([prompt_ids, np.asarray(completions[0][:-1], dtype=np.int32)])
    return build_row(trunk, [Branch(len(prompt_ids), none, np.asarray(ids, dtype=np.int32)) for ids in completions])


def trajectory_rows(builder: PromptBuilder, items: np.ndarray, n_targets: int) -> list[Row]:
    """Rows in which the last ``n_targets`` of ``items`` (item indexes, oldest first) are completions, in their order.

    Each target is predicted from ``builder.prompt`` of all items before it, with the same truncation: while prompts
    begin with the same item they share a row, so an over-long trajectory becomes several rows.
    """
    items = np.asarray(items)
    first = len(items) - n_targets
    if not 0 <= first < len(items):
        raise ValueError(f"a trajectory of {len(items)} items cannot have {n_targets} targets")
    starts = _starts(builder, items, first)
    pieces = builder.pieces(items)
    rows = []
    for start in np.unique(starts):
        targets = first + np.flatnonzero(starts == start)
        rows.append(_trajectory_row(builder, items, pieces, int(start), targets))
    return rows


def _starts(builder: PromptBuilder, items: np.ndarray, first: int) -> np.ndarray:
    """Index of the oldest item that fits in the prompt, for every target; it never moves back."""
    dropped = np.zeros(len(items) - first, dtype=np.int64)
    for target in range(len(items) - 1, first - 1, -1):
        _, dropped[target - first] = builder.prompt(items[:target])
        if dropped[target - first] == 0:
            break
    return dropped


def _trajectory_row(
    builder: PromptBuilder, items: np.ndarray, pieces: Sequence[np.ndarray], start: int, targets: np.ndarray
) -> Row:
    parts = [builder.head, *pieces[start : targets[-1]]]
    ends = np.cumsum([len(part) for part in parts])
    completions = [builder.completion(items[target]) for target in targets]
    if len(builder.tail) == 0:
        parts.append(completions[-1][:-1])
    branches = [
        Branch(int(ends[target - start]), builder.tail, completion)
        for target, completion in zip(targets, completions, strict=True)
    ]
    return build_row(np.concatenate(parts), branches)


@dataclass(frozen=True, slots=True)
class Batch:
    """B rows padded to L tokens, with P positions at which T tokens of C completions are predicted. All int64."""

    input_ids: torch.Tensor
    """[B, L], right-padded."""
    position_ids: torch.Tensor
    """[B, L]; where no row has a branch padding counts on, so that positions stay consecutive, and is 0 otherwise."""
    segment: torch.Tensor
    """[B, L]; 0 trunk, b ≥ 1 branch, -1 padding."""
    attach: torch.Tensor
    """[B, L]; trunk tokens that a branch's token sees."""
    gather: torch.Tensor
    """[P]; positions that predict something, each once, as indexes into the flattened [B * L]; padded with 0."""
    source: torch.Tensor
    """[T]; which of the P positions predicts each target; never decreasing."""
    targets: torch.Tensor
    """[T]"""
    completion: torch.Tensor
    """[T]; the completion, 0 … C - 1 over the whole batch, that each target belongs to."""
    row_offsets: torch.Tensor
    """[B + 1]; completions of row b are row_offsets[b] … row_offsets[b + 1] - 1."""
    causal: bool
    """No row has a branch: plain causal attention will do."""
    n_completions: int
    n_tokens: int
    """Input tokens without padding."""
    longest: int
    """One more than the highest position of a real token."""

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        moved = {name: getattr(self, name).to(device, non_blocking=True) for name in ARRAYS}
        return Batch(**moved, **{name: getattr(self, name) for name in _FACTS})

    def to_numpy(self) -> dict[str, np.ndarray]:
        """Plain int32 arrays that `from_numpy` takes back."""
        return {name: getattr(self, name).cpu().numpy().astype(np.int32) for name in ARRAYS}

    @classmethod
    def from_numpy(cls, arrays: Mapping[str, np.ndarray]) -> Batch:
        """The batch of the arrays of `to_numpy` (or of `collate_numpy`), on the CPU."""
        real = arrays["segment"] != PAD_SEGMENT
        return cls(
            **{name: torch.from_numpy(np.asarray(arrays[name], dtype=np.int64)) for name in ARRAYS},
            causal=bool((arrays["segment"] <= 0).all()),
            n_completions=int(arrays["row_offsets"][-1]),
            n_tokens=int(real.sum()),
            longest=int(arrays["position_ids"][real].max(initial=-1)) + 1,
        )


_FACTS = ("causal", "n_completions", "n_tokens", "longest")
ARRAYS = tuple(field.name for field in fields(Batch) if field.name not in _FACTS)
"""Names of the arrays that `Batch.to_numpy` gives."""


def padded_size(n: int, multiple: int = 16) -> int:
    """The smallest of a few sizes that holds n: multiples of ``multiple``, from 8 of them on four sizes an octave.

    Few sizes, because on a CPU every new bfloat16 shape costs a compilation; beyond 4 * multiple at most a fifth of the
    size is padding.
    """
    step = multiple
    while n > 8 * step:
        step *= 2
    return max(step, -(-n // step) * step)


def collate(rows: Sequence[Row], *, pad_multiple: int = 16, pad_to: int | None = None) -> Batch:
    """Rows as one batch, padded to ``pad_to`` tokens, or to the size that `padded_size` gives for the longest row."""
    return Batch.from_numpy(collate_numpy(rows, pad_multiple=pad_multiple, pad_to=pad_to))


def collate_numpy(rows: Sequence[Row], *, pad_multiple: int = 16, pad_to: int | None = None) -> dict[str, np.ndarray]:
    """`collate` as a dict of int32 arrays, the form in which a batch travels between processes.

    Raises:
        ValueError: no rows, or a row longer than ``pad_to``.
    """
    longest = max((len(row) for row in rows), default=0)
    length = padded_size(longest, pad_multiple) if pad_to is None else pad_to
    if not rows or longest > length:
        raise ValueError(f"{len(rows)} rows, the longest of {longest} tokens, cannot be padded to {length} tokens")
    shape = (len(rows), length)
    input_ids, attach = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    position_ids = np.tile(np.arange(length, dtype=np.int32), (len(rows), 1))
    segment = np.full(shape, PAD_SEGMENT, np.int32)
    for index, row in enumerate(rows):
        input_ids[index, : len(row)] = row.input_ids
        position_ids[index, : len(row)] = row.position_ids
        segment[index, : len(row)] = row.segment
        attach[index, : len(row)] = row.attach
    if (segment > 0).any():
        position_ids[segment == PAD_SEGMENT] = 0
    row_offsets = np.cumsum([0, *(row.n_completions for row in rows)])
    flat = np.concatenate([row.predict_at + index * length for index, row in enumerate(rows)])
    owners = np.concatenate([row.completion + row_offsets[index] for index, row in enumerate(rows)])
    order = np.argsort(flat, kind="stable")
    positions, source = np.unique(flat[order], return_inverse=True)
    gather = np.zeros(padded_size(len(positions), 4 * pad_multiple), np.int32)
    gather[: len(positions)] = positions
    arrays: dict[str, np.ndarray] = {
        "input_ids": input_ids,
        "position_ids": position_ids,
        "segment": segment,
        "attach": attach,
        "gather": gather,
        "source": source,
        "targets": np.concatenate([row.targets for row in rows])[order],
        "completion": owners[order],
        "row_offsets": row_offsets,
    }
    return {name: array.astype(np.int32) for name, array in arrays.items()}


def dense_mask(batch: Batch) -> torch.Tensor:
    """Who sees whom: bool [B, 1, L, L], True where query (dim 2) may attend to key (dim 3).

    A token sees earlier tokens of its own segment and itself, and a branch's token the trunk up to its attach point.
    Padding sees padding, so that no row of the mask is empty (softmax over nothing is NaN).
    """
    length = batch.segment.shape[1]
    index = torch.arange(length, device=batch.segment.device)
    query, key = batch.segment[:, :, None], batch.segment[:, None, :]
    shared = (key == 0) & (index[None, None, :] < batch.attach[:, :, None])
    return (((query == key) | shared) & (index[None, :] <= index[:, None])).unsqueeze(1)


def _int32(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts).astype(np.int32) if parts else np.zeros(0, np.int32)
