"""A batch of examples as flat arrays: what every rejected-sampling strategy reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from rosepo.sampling.draws import example_keys


@dataclass(frozen=True, eq=False)
class Examples:
    """N examples over a catalogue of `n_items` items, all items as indexes.

    Attributes:
        keys: uint64 [N], from `example_keys`.
        history_items: int64 [sum of lengths], all histories end to end, each oldest first.
        history_offsets: int64 [N + 1], where each history begins and the last one ends.
        targets: int64 [N].
        n_items: size of the catalogue.
        prompts: token ids of each prompt, for strategies that ask the model; None where no such strategy is used.
    """

    keys: np.ndarray
    history_items: np.ndarray
    history_offsets: np.ndarray
    targets: np.ndarray
    n_items: int
    prompts: Sequence[np.ndarray] | None = None

    @classmethod
    def of(
        cls,
        example_ids: Sequence[str],
        histories: Sequence[np.ndarray],
        targets: np.ndarray,
        n_items: int,
        prompts: Sequence[np.ndarray] | None = None,
    ) -> Examples:
        """From one history array an example."""
        offsets = np.cumsum([0, *(len(history) for history in histories)])
        items = np.concatenate([np.zeros(0, dtype=np.int64), *histories]).astype(np.int64, copy=False)
        return cls(example_keys(example_ids), items, offsets, np.asarray(targets, dtype=np.int64), n_items, prompts)

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, rows: np.ndarray) -> Examples:
        """The examples at `rows` (int64 [m])."""
        lengths = np.diff(self.history_offsets)[rows]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        at = np.arange(offsets[-1]) + np.repeat(self.history_offsets[rows] - offsets[:-1], lengths)
        prompts = None if self.prompts is None else [self.prompts[row] for row in rows]
        return Examples(self.keys[rows], self.history_items[at], offsets, self.targets[rows], self.n_items, prompts)

    @cached_property
    def excluded(self) -> Excluded:
        """History and target of each example."""
        rows = np.concatenate([np.repeat(np.arange(len(self)), np.diff(self.history_offsets)), np.arange(len(self))])
        keys = rows * self.n_items + np.concatenate([self.history_items, self.targets])
        return Excluded(np.unique(keys), len(self), self.n_items)


class Excluded:
    """Items that must not be drawn, per example: `keys` int64, sorted, each `row * n_items + item` once."""

    def __init__(self, keys: np.ndarray, n_rows: int, n_items: int) -> None:
        self.keys, self.n_rows, self.n_items = keys, n_rows, n_items

    @cached_property
    def rows(self) -> np.ndarray:
        """Example of each entry; int64."""
        return self.keys // self.n_items

    @cached_property
    def items(self) -> np.ndarray:
        """Item of each entry, ascending within an example; int64."""
        return self.keys - self.rows * self.n_items

    @cached_property
    def offsets(self) -> np.ndarray:
        """Where each example's entries begin; int64 [n_rows + 1]."""
        return np.searchsorted(self.keys, np.arange(self.n_rows + 1) * self.n_items)

    def lists(self) -> list[np.ndarray]:
        """One item array an example."""
        return np.split(self.items, self.offsets[1:-1]) if self.n_rows else []

    def holds(self, items: np.ndarray) -> np.ndarray:
        """Whether each example excludes its entry of `items` int64 [n_rows] (-1: no); bool [n_rows]."""
        keys = np.arange(self.n_rows) * self.n_items + items
        at = np.minimum(np.searchsorted(self.keys, keys), max(len(self.keys) - 1, 0))
        return (items >= 0) & (self.keys[at] == keys) if len(self.keys) else np.zeros(self.n_rows, dtype=bool)

    def add(self, items: np.ndarray) -> Excluded:
        """Also exclude one item an example: `items` int64 [n_rows], -1 for none."""
        there = np.flatnonzero(items >= 0)
        keys = np.union1d(self.keys, there * self.n_items + items[there])
        return Excluded(keys, self.n_rows, self.n_items)
