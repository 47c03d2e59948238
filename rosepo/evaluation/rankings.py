"""Rankings on disk: the examples that are measured, and the twenty best items of every system for each of them.

Examples are written once, a batch a row group: batches are thereby fixed by the data, and a ranking does not depend on
how many actors share the work. A system's rankings are a folder of part files, each whole or not there, of some batches
each: whoever ranks writes them, nobody collects them, and a later run makes those that are missing. Every figure can be
computed again from them.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rosepo.data.item_columns import INDEX, flat_items, item_lists, item_matrix, items_of
from rosepo.data.seen import read_split
from rosepo.metrics.ranking import target_ranks
from rosepo.run.shard_files import whole_part
from rosepo.utils.errors import StageError, UserError
from rosepo.utils.files import write_json
from rosepo.utils.list_columns import list_column

DEPTH = 20
"""Places of a ranking that are kept."""
NO_ITEM = -2
"""A place that is taken by no title of the catalogue, or by one that stands before: wrong whatever the target is."""
PARTS = 16
"""Parts of few examples, so that a few actors finish together."""
PART_BATCHES = 32
"""Batches of a part at most: what a lost actor repeats."""
ORIGIN = "_origin.json"


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


def open_rankings(folder: Path, parts: Sequence[Part], origin: str, earlier: Path | None = None) -> list[Part]:
    """Make the folder of a system's rankings ready; the parts that are left to make.

    Args:
        origin: digest of all that the rankings are made from. Parts of another origin are removed.
        earlier: rankings that a finished evaluation has; taken over where they have the same origin.
    """
    if _origin(folder) != origin:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        if earlier is not None and _origin(earlier) == origin:
            for part in parts:
                _link(earlier / part.name, folder / part.name)
        write_json(folder / ORIGIN, {"origin": origin})
    left = [part for part in parts if not _is_whole(folder, part)]
    names = {part.name for part in parts} - {part.name for part in left} | {ORIGIN}
    for entry in folder.iterdir():
        if entry.name not in names:
            entry.unlink()
    return left


def check_complete(folder: Path, parts: Sequence[Part]) -> None:
    """Raises StageError where a part is not there."""
    missing = sum(not (folder / part.name).exists() for part in parts)
    if missing:
        raise StageError(f"{missing} of {len(parts)} parts of {folder.stem} were not ranked: run the stage again")


def write_part(folder: Path, part: Part, tables: Sequence[pa.Table]) -> None:
    """Write the rankings of a part's batches, whole or not at all.

    Raises:
        StageError: the disk is full.
    """
    with whole_part(folder / part.name) as aside:
        pq.write_table(pa.concat_tables(tables), aside, compression="zstd")


def rankings_table(batch: Batch, items: np.ndarray, scores: np.ndarray) -> pa.Table:
    """Rankings as a table: example_id, user_id, target, rank (0 is first, -1 absent), items and scores, best first;
    target and items are item indexes.

    Args:
        items: item indexes int64 [B, k], padded with -1; `NO_ITEM` becomes null.
        scores: float32 [B, k].
    """
    taken = items != -1
    lengths, flat = taken.sum(axis=1), items[taken]
    return pa.table(
        {
            "example_id": pa.array(batch.example_ids, pa.string()),
            "user_id": batch.users,
            "target": pa.array(batch.targets, INDEX),
            "rank": pa.array(target_ranks(items, batch.targets).astype(np.int32)),
            "items": list_column(pa.array(flat, INDEX, mask=flat < 0), lengths),
            "scores": list_column(scores[taken].astype(np.float32), lengths),
        }
    )


def read_part(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Ranks int64 [n] and item indexes int32 [n, DEPTH] of a part, -1 where a place holds no title."""
    table = pq.read_table(path, columns=["rank", "items"], partitioning=None)
    found, offsets = flat_items(table, "items", np.int32)
    items = np.full((len(table), DEPTH), -1, dtype=np.int32)
    items[np.arange(DEPTH) < np.diff(offsets)[:, None]] = found
    return table["rank"].to_numpy().astype(np.int64), items


def read_rankings(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """All of a system's rankings, as `read_part` gives them: 88 bytes an example."""
    ranks, items = zip(*(read_part(path) for path in sorted(folder.glob("part-*.parquet"))), strict=True)
    return np.concatenate(ranks), np.concatenate(items)


def count_cut(folder: Path) -> dict[str, int]:
    """Prompts of a model's rankings that did not hold their whole history, and the items that they left out."""
    counts = {"prompts": 0, "items": 0}
    for path in sorted(folder.glob("part-*.parquet")):
        left_out = pq.read_table(path, columns=["left_out"], partitioning=None)["left_out"].to_numpy()
        counts["prompts"] += int((left_out > 0).sum())
        counts["items"] += int(left_out.sum())
    return counts


def _origin(folder: Path) -> str | None:
    try:
        found: str = json.loads((folder / ORIGIN).read_text(encoding="utf-8"))["origin"]
        return found
    except (OSError, ValueError, KeyError):
        return None


def _is_whole(folder: Path, part: Part) -> bool:
    try:
        return bool(pq.read_metadata(folder / part.name).num_rows == part.rows)
    except (OSError, pa.ArrowException):
        return False


def _link(source: Path, target: Path) -> None:
    """The same file under another name, or a copy where the file system has no links; nothing where it is gone."""
    try:
        os.link(source, target)
    except FileNotFoundError:
        return
    except OSError:
        shutil.copyfile(source, target)
