"""Random access to a Parquet table of many files: where the rows of a training come from."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rosepo.utils.errors import UserError

_KEPT_BYTES = 256 * 2**20
"""Of row groups that a table keeps in memory; the last one that was read stays, however large."""


def part_files(folder: Path) -> list[Path]:
    """The files of a table, in the order of their rows."""
    return [path for path in sorted(folder.glob("*.parquet")) if not path.name.startswith(("_", "."))]


class ParquetRows:
    """Random access to the rows of a Parquet table of many files; row groups read last are held in memory.

    Rows are numbered through the files in the order of their names.
    """

    _kept_bytes = 0

    def __init__(self, folder: Path, columns: list[str] | None = None) -> None:
        """
        Raises:
            UserError: the folder holds no Parquet file, or no row.
        """
        self.columns = columns
        self.names: list[str] = []
        self._groups: list[tuple[Path, int]] = []
        self._starts = [0]
        for path in part_files(folder):
            meta = pq.read_metadata(path)
            self.names = self.names or meta.schema.to_arrow_schema().names
            for group in range(meta.num_row_groups):
                self._groups.append((path, group))
                self._starts.append(self._starts[-1] + meta.row_group(group).num_rows)
        if self._starts[-1] == 0:
            raise UserError(f"{folder} holds no rows to train on")
        self._kept: OrderedDict[int, pa.Table] = OrderedDict()

    def __len__(self) -> int:
        return self._starts[-1]

    def take(self, indices: np.ndarray) -> pa.Table:
        """The rows at int64 `indices` [n], n ≥ 1, in that order."""
        groups = np.searchsorted(self._starts, indices, side="right") - 1
        order = np.argsort(groups, kind="stable")
        parts = []
        for group in np.unique(groups):
            places = order[groups[order] == group]
            parts.append(self._read(int(group)).take(pa.array(indices[places] - self._starts[group])))
        return pa.concat_tables(parts).take(pa.array(np.argsort(order, kind="stable")))

    def chunks(self) -> Iterator[pa.Table]:
        """All rows in order, a row group at a time."""
        for group in range(len(self._groups)):
            yield self._read(group)

    def _read(self, group: int) -> pa.Table:
        if group not in self._kept:
            self._kept[group] = found = self._load(group)
            self._kept_bytes += found.nbytes
            while len(self._kept) > 1 and self._kept_bytes > _KEPT_BYTES:
                self._kept_bytes -= self._kept.popitem(last=False)[1].nbytes
        self._kept.move_to_end(group)
        return self._kept[group]

    def _load(self, group: int) -> pa.Table:
        path, place = self._groups[group]
        return pq.ParquetFile(path).read_row_group(place, columns=self.columns)

    def ready(self, indices: np.ndarray) -> None:
        """Return when the rows at `indices`, int64 [n], can be read: at once, for a table that is there."""
