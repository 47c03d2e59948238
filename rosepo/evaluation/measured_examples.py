"""The examples that are measured: a file that is written once, a batch a row group, and the parts of it to rank.

Batches are thereby fixed by the data: a ranking does not depend on how many actors share the work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rosepo.data.item_columns import item_lists, item_matrix, items_of
from rosepo.data.seen import read_split
from rosepo.run.shard_files import whole_part
from rosepo.utils.errors import UserError

EXAMPLES_FILE = "_examples.parquet"
PARTS = 16
"""Parts of few examples, so that a few actors finish together."""
PART_BATCHES = 32
"""Batches of a part at most: what a lost actor repeats."""


@dataclass(frozen=True)
class Batch:
    """Examples of one row group, items as indexes, lists oldest first; a history is the end of what was `seen`. Where
    there are candidates, int64 [B, C], nothing else competes."""

    example_ids: list[str]
    users: pa.Array
    histories: list[np.ndarray]
    seen: list[np.ndarray]
    targets: np.ndarray
    candidates: np.ndarray | None = None

    @classmethod
    def of(cls, table: pa.Table) -> Batch:
        """From columns example_id, user_id, history, seen, target, and candidates where the table has them."""
        return cls(
            table["example_id"].to_pylist(),
            table["user_id"].combine_chunks(),
            item_lists(table, "history"),
            item_lists(table, "seen"),
            items_of(table, "target"),
            item_matrix(table, "candidates") if "candidates" in table.column_names else None,
        )


@dataclass(frozen=True)
class Part:
    """Consecutive batches whose rankings share a file.

    Attributes:
        number: of the file.
        first, batches: the first row group of the examples, and how many.
        rows: examples in them.
    """

    number: int
    first: int
    batches: int
    rows: int

    @property
    def name(self) -> str:
        """Of the file."""
        return f"part-{self.number:05d}.parquet"


def write_examples(
    folder: Path, split: str, limit: int | None, batch_size: int, out: Path, extra: tuple[str, ...] = ()
) -> int:
    """Copy the examples of a split into the file `out`, `batch_size` a row group, in order; return their number.

    Args:
        limit: keep this many, those with the smallest hash of example_id.
        extra: columns that are kept too.

    Raises:
        UserError: the split is empty.
    """
    count, waiting = 0, pa.table({})
    writer: pq.ParquetWriter | None = None
    with whole_part(out) as aside:
        try:
            for table in read_split(folder, split, limit, extra):
                count += len(table)
                waiting = pa.concat_tables([waiting, table]) if len(waiting) else table
                writer = writer or pq.ParquetWriter(aside, table.schema, compression="zstd")
                whole = len(waiting) // batch_size * batch_size
                if whole:
                    writer.write_table(waiting.slice(0, whole), row_group_size=batch_size)
                    waiting = waiting.slice(whole)
            if writer is not None and len(waiting):
                writer.write_table(waiting)
        finally:
            if writer is not None:
                writer.close()
        if not count:
            raise UserError(f"{folder} has no {split} examples to evaluate: choose another evaluate.split")
    return count


def read_batches(examples: Path, row_groups: Sequence[int] | None = None) -> Iterator[Batch]:
    """The examples batch by batch, as `write_examples` cut them."""
    with pq.ParquetFile(examples) as file:
        for group in range(file.num_row_groups) if row_groups is None else row_groups:
            yield Batch.of(file.read_row_group(group))


def part_batches(examples: Path, part: Part) -> Iterator[Batch]:
    """The examples of a part, batch by batch."""
    return read_batches(examples, range(part.first, part.first + part.batches))


def batches_beside(
    examples: Path, parts: Sequence[Part], columns_of: Callable[[Part], Mapping[str, tuple[Any, ...]]]
) -> Iterator[tuple[Batch, dict[str, Any]]]:
    """The examples of parts batch by batch, with its rows of the columns that `columns_of` its part has by name."""
    for part in parts:
        columns, low = columns_of(part), 0
        for batch in part_batches(examples, part):
            rows = slice(low, low + len(batch.targets))
            yield batch, {name: tuple(column[rows] for column in named) for name, named in columns.items()}
            low = rows.stop


def plan_parts(examples: Path) -> list[Part]:
    """The parts that the rankings of a file of examples have, in order; by its batches alone."""
    metadata = pq.read_metadata(examples)
    sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    batches = int(np.clip(-(-len(sizes) // PARTS), 1, PART_BATCHES))
    starts = range(0, len(sizes), batches)
    return [
        Part(number, first, len(sizes[first : first + batches]), sum(sizes[first : first + batches]))
        for number, first in enumerate(starts)
    ]


def user_codes(examples: Path) -> np.ndarray:
    """A number for the user of every example: int32 [N], in order of appearance."""
    users = pq.read_table(examples, columns=["user_id"])["user_id"].combine_chunks()
    codes: np.ndarray = users.dictionary_encode().indices.to_numpy(zero_copy_only=False)
    return codes
