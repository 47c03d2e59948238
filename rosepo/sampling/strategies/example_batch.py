"""A batch of examples as flat arrays: what every rejected-sampling strategy reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa

from rosepo.data.item_columns import flat_items, item_matrix, items_of
from rosepo.data.random import example_keys
from rosepo.utils.arrays import ranges


@dataclass(frozen=True, eq=False)
class Examples:
    """N examples over a catalogue of `n_items` items, all items as indexes.

    Attributes:
        ids: object [N], example ids.
        keys: uint64 [N], from `example_keys`.
        users: user ids [N].
        history_items: int64 [sum of lengths], all histories end to end, each oldest first.
        history_offsets: int64 [N + 1], where each history begins and the last one ends.
        seen_items, seen_offsets: like the histories, all items before each target.
        targets: int64 [N].
        n_items: size of the catalogue.
        candidates: int64 [N, C], each prompt's own candidates, the target among them; None where there are none.
        prompts: token ids of each prompt, for strategies that ask the model; None where no such strategy is used.
    """

    ids: np.ndarray
    keys: np.ndarray
    users: np.ndarray
    history_items: np.ndarray
    history_offsets: np.ndarray
    seen_items: np.ndarray
    seen_offsets: np.ndarray
    targets: np.ndarray
    n_items: int
    candidates: np.ndarray | None = None
    prompts: Sequence[np.ndarray] | None = None

    @classmethod
    def of(cls, table: pa.Table, n_items: int) -> Examples:
        """A table of examples (see `read_shard`), without prompts."""
        ids = table["example_id"].to_numpy()
        return cls(
            ids,
            example_keys(ids),
            table["user_id"].to_numpy(),
            *flat_items(table, "history"),
            *flat_items(table, "seen"),
            items_of(table, "target"),
            n_items,
            item_matrix(table, "candidates") if "candidates" in table.column_names else None,
        )

    @property
    def histories(self) -> list[np.ndarray]:
        """One item array an example."""
        return np.split(self.history_items, self.history_offsets[1:-1]) if len(self) else []

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, rows: np.ndarray) -> Examples:
        """The examples at `rows` (int64 [m])."""
        taken = Examples(
            self.ids[rows],
            self.keys[rows],
            self.users[rows],
            *_take(self.history_items, self.history_offsets, rows),
            *_take(self.seen_items, self.seen_offsets, rows),
            self.targets[rows],
            self.n_items,
            None if self.candidates is None else self.candidates[rows],
            None if self.prompts is None else [self.prompts[row] for row in rows],
        )
        if "excluded" in vars(self):  # sorted once already
            vars(taken)["excluded"] = self.excluded.take(rows)
        return taken

    @cached_property
    def excluded(self) -> Excluded:
        """All that was seen before each example, and its target."""
        rows = np.concatenate([np.repeat(np.arange(len(self)), np.diff(self.seen_offsets)), np.arange(len(self))])
        keys = rows * self.n_items + np.concatenate([self.seen_items, self.targets])
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
        """Whether each example excludes its entries of `items` int64 [n_rows] or [n_rows, m] (-1: no); bool like it."""
        rows = np.arange(self.n_rows).reshape(-1, *[1] * (items.ndim - 1))
        keys = rows * self.n_items + items
        at = np.minimum(np.searchsorted(self.keys, keys), max(len(self.keys) - 1, 0))
        return (items >= 0) & (self.keys[at] == keys) if len(self.keys) else np.zeros(items.shape, dtype=bool)

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


def _distinct(keys: np.ndarray) -> np.ndarray:
    """Sorted, each once. Unlike `np.unique`, which hashes first: integers sort faster than they hash."""
    keys = np.sort(keys)
    return keys[np.append(True, keys[1:] != keys[:-1])] if len(keys) else keys


def _take(items: np.ndarray, offsets: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same of some of them."""
    lengths = np.diff(offsets)[rows]
    return items[ranges(offsets[rows], lengths)], np.concatenate([[0], np.cumsum(lengths)])
