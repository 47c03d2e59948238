"""What the streams of a training run deliver, as a value that travels to the actors which make the batches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa

from rosepo.training.feed.parquet_rows import ParquetRows
from rosepo.training.feed.schedule import WINDOW, Schedule
from rosepo.utils.arrays import ranges

Arrays = dict[str, np.ndarray]


class Table(Protocol):
    """Where a plan's rows come from, if not from a folder that holds them all."""

    def open(self, columns: list[str]) -> ParquetRows:
        """Rows with these columns; called where they are read."""

    def read(self, name: str) -> pa.Table:
        """One file of it, waited for."""


class Encoder(Protocol):
    """Turns what one rank takes of a step into micro-batches; sent to the feeding actors."""

    def __call__(self, rows: pa.Table, parts: int) -> list[Arrays]:
        """Micro-batches, each the arrays of a `Batch` and `units`: `parts` of them, fewer where there are fewer rows,
        more where one would have more tokens than it may."""


@dataclass(frozen=True)
class FeedPlan:
    """What the streams of a training run deliver: a table, its schedule, and how a micro-batch is made of rows."""

    folder: Path
    columns: tuple[str, ...]
    encoder: Encoder
    n_rows: int
    """Rows trained on; fewer than the table holds are spread over it evenly."""
    batch_size: int
    micro_batch_size: int
    """Rows of the schedule in a micro-batch; where they have too many tokens the encoder makes more of it."""
    seed: int
    epochs: float
    instead: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Columns of numbers that take the place of the table's: [n_table_rows, k], one row for each that is
    trained on."""
    offsets: np.ndarray | None = None
    """int64 [n + 1]: where the schedule's row i is several rows of the table, offsets[i] … offsets[i + 1] - 1. None:
    each is one row of it."""
    places: np.ndarray | None = None
    """int64 [n], ascending: the rows of the table that are trained on, where they are not all; not with `offsets`."""
    window: int = WINDOW
    """Rows of the schedule that are shuffled together."""
    growing: Table | None = None
    """The table, where it is still being written."""

    @property
    def schedule(self) -> Schedule:
        """The rows of every step."""
        return Schedule(self.n_rows, self.batch_size, self.seed, self.epochs, self.window)

    def open(self) -> ParquetRows:
        """The table that `take` looks rows up in."""
        columns = list(self.columns)
        return ParquetRows(self.folder, columns) if self.growing is None else self.growing.open(columns)

    def table_rows(self, rows: np.ndarray, table_length: int) -> np.ndarray:
        """Where the schedule's `rows`, int64 [n], stand in a table of so many rows: int64, several of a row with
        `offsets`."""
        if self.places is not None:
            return self.places[rows * len(self.places) // self.n_rows]
        if self.offsets is None:
            return rows * table_length // self.n_rows
        units = rows * (len(self.offsets) - 1) // self.n_rows
        return ranges(self.offsets[units], self.offsets[units + 1] - self.offsets[units])

    def take(self, table: ParquetRows, rows: np.ndarray) -> pa.Table:
        """The schedule's `rows`, int64 [n], n ≥ 1, looked up in the plan's table."""
        found = table.take(self.table_rows(rows, len(table)))
        if self.instead:
            places = rows
            if self.offsets is not None:
                places = ranges(self._before[rows], self._before[rows + 1] - self._before[rows])
            for name, values in self.instead.items():
                found = found.drop_columns(name).append_column(name, pa.array(list(values[places])))
        return found

    @property
    def n_table_rows(self) -> int:
        """Rows of the table that are trained on."""
        return self.n_rows if self.offsets is None else int(self._before[-1])

    @cached_property
    def _before(self) -> np.ndarray:
        """Rows of the table before each row of the schedule, int64 [n_rows + 1], of those that are trained on."""
        assert self.offsets is not None
        units = np.arange(self.n_rows) * (len(self.offsets) - 1) // self.n_rows
        return np.append(0, np.cumsum(self.offsets[units + 1] - self.offsets[units]))
