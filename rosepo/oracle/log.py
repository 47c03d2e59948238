"""What the oracle learns from and is validated on, read batch by batch into flat arrays: a number an interaction, and
no object a user, however many there are.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rosepo.data.item_columns import ItemLists, flat_items, items_of
from rosepo.data.seen import read_split, trajectory_batches
from rosepo.oracle.crossfit import fold_of


@dataclass(frozen=True)
class Sequences(ItemLists):
    """Item sequences, of which the last `n_targets[i]` items are targets."""

    n_targets: np.ndarray

    def take(self, rows: np.ndarray) -> Sequences:
        """The sequences at `rows`, as one of their own."""
        lists = super().take(rows)
        return Sequences(lists.items, lists.offsets, self.n_targets[rows])


@dataclass(frozen=True)
class Validation:
    """N examples that an oracle is measured on.

    Attributes:
        users: ids.
        histories: what is read, int32.
        seen: what does not compete, int32.
        targets: int64 [N].
        folds: int64 [N], of the users.
    """

    users: pa.ChunkedArray
    histories: ItemLists
    seen: ItemLists
    targets: np.ndarray
    folds: np.ndarray

    def __len__(self) -> int:
        return len(self.targets)


@dataclass(frozen=True)
class Extent:
    """How much there is of sequences or examples.

    Attributes:
        rows: how many.
        targets: in all of them; 0 where they are not counted.
        longest: items of the longest.
        folds: that have users.
    """

    rows: int
    targets: int
    longest: int
    folds: int

    @classmethod
    def of(cls, tables: Iterable[pa.Table], column: str, folds: int, seed: int) -> Extent:
        """Of tables with a column of lists, user_id and, where they are counted, n_targets."""
        rows = targets = longest = 0
        there: set[int] = set()
        for table in tables:
            rows += len(table)
            longest = max(longest, pc.max(pc.list_value_length(table[column])).as_py() or 0)
            there.update(folds_of(table, folds, seed).tolist())
            if "n_targets" in table.column_names:
                targets += int(table["n_targets"].to_numpy().sum())
        return cls(rows, targets, longest, len(there))


def read_sequences(examples: Path, folds: int, seed: int) -> tuple[Sequences, np.ndarray]:
    """All training sequences of an examples table, and the folds of their users, int64."""
    lists, targets, dealt = [], [], []
    for table in trajectory_batches(examples, ("user_id", "items", "n_targets")):
        lists.append(flat_items(table, "items", np.int32))
        targets.append(table["n_targets"].to_numpy())
        dealt.append(folds_of(table, folds, seed))
    joined = ItemLists.joined(lists)
    return Sequences(joined.items, joined.offsets, np.concatenate(targets)), np.concatenate(dealt)


def read_validation(examples: Path, folds: int = 1, seed: int = 0) -> Validation:
    """All validation examples of an examples table.

    Raises:
        UserError: no files of examples.
    """
    users, histories, seen, targets, dealt = [], [], [], [], []
    for table in read_split(examples, "validation"):
        users.append(table["user_id"])
        histories.append(flat_items(table, "history", np.int32))
        seen.append(flat_items(table, "seen", np.int32))
        targets.append(items_of(table, "target"))
        dealt.append(folds_of(table, folds, seed))
    return Validation(
        pa.chunked_array([chunk for column in users for chunk in column.chunks], users[0].type),
        ItemLists.joined(histories),
        ItemLists.joined(seen),
        np.concatenate(targets),
        np.concatenate(dealt),
    )


def folds_of(table: pa.Table, folds: int, seed: int) -> np.ndarray:
    """The folds of a table's users, int64 [n]."""
    return fold_of(table["user_id"].to_pylist(), folds, seed)


def rows_without(folds: np.ndarray, fold: int | None) -> np.ndarray:
    """Places of those that are of other folds, ascending; of all where None."""
    return np.arange(len(folds)) if fold is None else np.flatnonzero(folds != fold)
