"""A table whose part files are still being written while training reads it: what each will hold is known beforehand.

The parts appear in a folder, whole and in any order, and the folder takes its final place when all are there. A reader
waits for the part that holds the rows it wants. While somebody makes parts, a file of the name `MAKING` stands beside
them: without it a part that is missing will not come.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rosepo.training.feed.parquet_rows import ParquetRows
from rosepo.training.feed.plan import FeedPlan
from rosepo.utils.errors import StageError

MAKING = "_making"
_LOOK = 0.1
"""Seconds between two looks for a part that is waited for."""


@dataclass(frozen=True)
class IncrementalTable:
    """What is known of the table before it is there.

    Attributes:
        folder: where the parts are written.
        final: where the folder is moved when all are there.
        parts: names of the part files, in the order of the table.
        rows: of each part.
        held_out: whether groups of validation examples are made beside them, as the first.
    """

    folder: Path
    final: Path
    parts: tuple[str, ...]
    rows: tuple[int, ...]
    held_out: bool = False

    def open(self, columns: list[str]) -> GrowingRows:
        """Rows with these columns."""
        return GrowingRows(self, columns)

    def read(self, name: str, columns: list[str] | None = None) -> pa.Table:
        """A file of the table, when it is there; raises as `wait` does."""
        while True:
            path = self.wait(name)
            try:
                return pq.read_table(path, columns=columns, partitioning=None)
            except FileNotFoundError:
                continue  # the folder went to its final place in between

    def wait(self, name: str) -> Path:
        """The path of a file of the table, when it is there.

        Raises:
            StageError: it is not there, and nobody makes it any more.
        """
        while (path := self._find(name)) is None:
            time.sleep(_LOOK)
        return path

    def _find(self, name: str) -> Path | None:
        if (self.folder / name).exists():
            return self.folder / name
        if self.folder.exists():
            # What stands in the final place now is an older table.
            if self.interrupted:
                raise StageError(f"{self.folder} has no {name}, and nobody makes it any more")
            return None
        if (self.final / name).exists():
            return self.final / name
        raise StageError(f"{self.final} has no {name}: run `rosepo pairs` again")

    @property
    def interrupted(self) -> bool:
        """Whether parts that are not there will not come."""
        if (self.folder / MAKING).exists():
            return False
        # Asked last: a folder whose parts are all there may go to its final place at any time.
        return not all((self.folder / name).exists() for name in self.parts) and self.folder.exists()


class GrowingRows(ParquetRows):
    """Random access to the rows of a growing table; parts read last are held in memory."""

    def __init__(self, table: IncrementalTable, columns: list[str]) -> None:
        self.table, self.columns, self.names = table, columns, columns
        self._starts = np.cumsum([0, *table.rows]).tolist()
        self._kept: OrderedDict[int, pa.Table] = OrderedDict()
        self._there: set[int] = set()

    def ready(self, indices: np.ndarray) -> None:
        """Return when the rows at `indices`, int64 [n], can be read.

        Raises:
            StageError: the table is not made any more. Told at once, also where the rows wanted are there.
        """
        if len(self._there) < len(self.table.parts) and self.table.interrupted:
            raise StageError(f"{self.table.folder} is not made any more, and parts of it are missing")
        for part in np.unique(np.searchsorted(self._starts, indices, side="right") - 1):
            if int(part) not in self._there:
                self.table.wait(self.table.parts[part])
                self._there.add(int(part))

    def _load(self, group: int) -> pa.Table:
        name, rows = self.table.parts[group], self.table.rows[group]
        found = self.table.read(name, self.columns)
        if len(found) != rows:
            raise StageError(f"{name} holds {len(found)} rows in place of {rows}: run `rosepo pairs` again")
        return found


class Maker(Protocol):
    """Who makes the parts while training runs."""

    table: IncrementalTable

    def start(self, order: Sequence[int]) -> None:
        """Begin; `order`: numbers of the parts, the one that is wanted first in front."""

    def told(self) -> str:
        """How far it is, for the progress line; empty where there is nothing to tell any more."""

    def finish(self) -> None:
        """Wait for the last part. Raises what stopped the making."""


def wanted_order(plan: FeedPlan, table: IncrementalTable) -> list[int]:
    """Numbers of the parts in the order in which the plan's first epoch takes rows of them."""
    starts = np.cumsum([0, *table.rows])
    order: dict[int, None] = {}
    for window in plan.schedule.windows(epoch=0):
        rows = plan.table_rows(window, int(starts[-1]))
        order |= dict.fromkeys((np.unique(np.searchsorted(starts, rows, side="right")) - 1).tolist())
    return list(order)
