"""Shared-prefix rows: a trunk of tokens that is computed once, and completions that branch off from it.

A completion attached at trunk position ``a`` sees the trunk's first ``a`` tokens, then its own, and nothing else; its
positions go on from ``a``. So its log-probability is the one that a row of its own would give. The first token of a
completion is predicted from the last token before it, and its last token (EOS) is predicted but never an input. A
completion that merely continues the trunk needs no tokens of its own: it is read off the trunk.

Rows are plain numpy: the actors that make them load no torch. `collate` puts them together, `batch` is torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from rosepo.data.prompts import PromptBuilder


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
    weights: np.ndarray | None = None
    """float32 [T]; what each target's log-probability counts in its completion's; None counts every one once."""

    def __len__(self) -> int:
        return len(self.input_ids)


def build_row(trunk: np.ndarray, branches: Sequence[Branch]) -> Row:
    """The row of a trunk (int [n]) and its completions, in the order given.

    Raises:
        ValueError: an empty completion, an attach point outside the trunk, or a completion with nothing before it.
    """
    trunk = np.asarray(trunk, dtype=np.int32)
    n = len(trunk)
    if all(len(completion) == 1 and len(tail) == 0 for _, tail, completion in branches):
        return _single_tokens(trunk, branches)
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


def _single_tokens(trunk: np.ndarray, branches: Sequence[Branch]) -> Row:
    """The row of completions of one token each: all of them are read off the trunk."""
    n = len(trunk)
    attach = np.array([branch.attach for branch in branches], dtype=np.int32)
    outside = (attach < 0) | (attach > n)
    if outside.any():
        owner = int(np.argmax(outside))
        raise ValueError(f"completion {owner} attaches at {attach[owner]}, outside a trunk of {n} tokens")
    if not attach.all():
        raise ValueError(f"completion {int(np.argmin(attach))} is empty or has no token before it")
    targets = _int32([branch.completion for branch in branches])
    return _on_trunk(trunk, attach - 1, targets, np.ones(len(branches), dtype=np.int64))


def _on_trunk(trunk: np.ndarray, predict_at: np.ndarray, targets: np.ndarray, lengths: np.ndarray) -> Row:
    """A row without branches; `lengths`: targets of every completion, one behind another."""
    n = len(trunk)
    none = np.zeros(n, dtype=np.int32)
    return Row(
        input_ids=trunk.astype(np.int32),
        position_ids=np.arange(n, dtype=np.int32),
        segment=none,
        attach=none,
        predict_at=predict_at.astype(np.int32),
        targets=targets.astype(np.int32),
        completion=np.repeat(np.arange(len(lengths), dtype=np.int32), lengths),
        n_completions=len(lengths),
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
        dropped[target - first] = builder.dropped(items[:target])
        if dropped[target - first] == 0:
            break
    return dropped


def _trajectory_row(
    builder: PromptBuilder, items: np.ndarray, pieces: tuple[np.ndarray, np.ndarray], start: int, targets: np.ndarray
) -> Row:
    flat, lengths = pieces
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    last = int(targets[-1])
    if len(builder.tail) == 0 and np.array_equal(builder.separator, builder.end):
        # What ends a title in the history ends it as a completion: every one of them lies on the trunk.
        tokens = np.concatenate([builder.head, flat[bounds[start] : bounds[last + 1]]])
        first = len(tokens) - int(lengths[targets].sum())
        if first < 1:
            raise ValueError("completion 0 is empty or has no token before it")
        return _on_trunk(tokens[:-1], np.arange(first - 1, len(tokens) - 1), tokens[first:], lengths[targets])
    parts = [builder.head, flat[bounds[start] : bounds[last]]]
    ends = len(builder.head) + bounds - bounds[start]
    completions = [builder.completion(items[target]) for target in targets]
    if len(builder.tail) == 0:
        parts.append(completions[-1][:-1])
    branches = [
        Branch(int(ends[target]), builder.tail, completion)
        for target, completion in zip(targets, completions, strict=True)
    ]
    return build_row(np.concatenate(parts), branches)


def _int32(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts).astype(np.int32) if parts else np.zeros(0, np.int32)
