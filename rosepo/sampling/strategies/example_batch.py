"""A batch of examples as flat arrays: what every rejected-sampling strategy reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from rosepo.data.random import example_keys
from rosepo.utils.arrays import ranges


@dataclass(frozen=True, eq=False)
class Examples:
    """N examples over a catalogue of `n_items` items, all items as indexes.

    Attributes:
        keys: uint64 [N], from `example_keys`.
        history_items: int64 [sum of lengths], all histories end to end, each oldest first.
        history_offsets: int64 [N + 1], where each history begins and the last one ends.
        targets: int64 [N].
        n_items: size of the catalogue.
        seen_items, seen_offsets: like the histories, all items before each target; None where that is the histories.
        prompts: token ids of each prompt, for strategies that ask the model; None where no such strategy is used.
        candidates: int64 [N, C], each prompt's own candidates, the target among them; None where there are none.
        ids: object [N], example ids; users: user ids [N]. For strategies that ask the oracle.
    """

    keys: np.ndarray
    history_items: np.ndarray
    history_offsets: np.ndarray
    targets: np.ndarray
    n_items: int
    prompts: Sequence[np.ndarray] | None = None
    seen_items: np.ndarray | None = None
    seen_offsets: np.ndarray | None = None
    candidates: np.ndarray | None = None
    ids: np.ndarray | None = None
    users: np.ndarray | None = None

    @classmethod
    def of(
        cls,
        example_ids: Sequence[str],
        histories: Sequence[np.ndarray],
        targets: np.ndarray,
        n_items: int,
        prompts: Sequence[np.ndarray] | None = None,
        seen: Sequence[np.ndarray] | None = None,
    ) -> Examples:
        """From one history array an example, and one of all that was seen where histories were cut."""
        whole = (None, None) if seen is None else _flat(seen)
        targets = np.asarray(targets, dtype=np.int64)
        return cls(example_keys(example_ids), *_flat(histories), targets, n_items, prompts, *whole)

    @property
    def histories(self) -> list[np.ndarray]:
        """One item array an example."""
        return np.split(self.history_items, self.history_offsets[1:-1]) if len(self) else []

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, rows: np.ndarray) -> Examples:
        """The examples at `rows` (int64 [m])."""
        histories = _take(self.history_items, self.history_offsets, rows)
        prompts = None if self.prompts is None else [self.prompts[row] for row in rows]
        seen: tuple[np.ndarray | None, np.ndarray | None] = (None, None)
        if self.seen_items is not None and self.seen_offsets is not None:
            seen = _take(self.seen_items, self.seen_offsets, rows)
        others = (None if array is None else array[rows] for array in (self.candidates, self.ids, self.users))
        taken = Examples(self.keys[rows], *histories, self.targets[rows], self.n_items, prompts, *seen, *others)
        if "excluded" in vars(self):  # sorted once already
            vars(taken)["excluded"] = self.excluded.take(rows)
        return taken

    @cached_property
    def excluded(self) -> Excluded:
        """All that was seen before each example, and its target."""
        items, offsets = self.seen_items, self.seen_offsets
        if items is None or offsets is None:
            items, offsets = self.history_items, self.history_offsets
        rows = np.concatenate([np.repeat(np.arange(len(self)), np.diff(offsets)), np.arange(len(self))])
        keys = rows * self.n_items + np.concatenate([items, self.targets])
        return Excluded(_distinct(keys), len(self), self.n_items)


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
        keys = np.concatenate([self.keys, there * self.n_items + items[there]])
        return Excluded(_distinct(keys), self.n_rows, self.n_items)

    def take(self, rows: np.ndarray) -> Excluded:
        """Those of the examples at `rows` (int64 [m])."""
        items, offsets = _take(self.items, self.offsets, rows)
        keys = np.repeat(np.arange(len(rows)), np.diff(offsets)) * self.n_items + items
        return Excluded(keys, len(rows), self.n_items)


def _flat(lists: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Arrays end to end, int64, and where each begins."""
    items = np.concatenate([np.zeros(0, dtype=np.int64), *lists]).astype(np.int64, copy=False)
    return items, np.cumsum([0, *(len(part) for part in lists)])


def _distinct(keys: np.ndarray) -> np.ndarray:
    """Sorted, each once. Unlike `np.unique`, which hashes first: integers sort faster than they hash."""
    keys = np.sort(keys)
    return keys[np.append(True, keys[1:] != keys[:-1])] if len(keys) else keys


def _take(items: np.ndarray, offsets: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same of some of them."""
    lengths = np.diff(offsets)[rows]
    return items[ranges(offsets[rows], lengths)], np.concatenate([[0], np.cumsum(lengths)])
