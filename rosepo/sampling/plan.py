"""Which examples become groups, and in which shards: decided before any actor starts, from the table alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rosepo.data.seen import with_seen
from rosepo.errors import UserError

SHARDS = 16
"""Shards of a small table, so that a few actors finish together."""
SHARD_BATCHES = 64
"""Batches of a shard at most: bounds an actor's memory, and the work that a lost actor repeats."""


@dataclass(frozen=True, eq=False)
class Shard:
    """Consecutive examples that one actor turns into one part file."""

    number: int
    path: str
    rows: np.ndarray
    """int32, rows of the file, ascending."""


def plan_shards(examples: Path, groups_per_user: int | None, batch_size: int) -> list[Shard]:
    """Every user's newest `groups_per_user` training examples (all where None), in the order of the table.

    A shard holds whole batches of one file, as many as the size of the table asks for, so that shards, and with them
    all batches, are the same however many actors there are.

    Raises:
        UserError: no examples table, one without the columns, or one without training examples.
    """
    files = example_files(examples)
    chosen = _training_rows(files, groups_per_user)
    total = sum(len(rows) for rows in chosen)
    if not total:
        raise UserError(f"{examples} holds no training examples: lower prepare.min_history, or take more data")
    size = batch_size * int(np.clip(-(-total // (batch_size * SHARDS)), 1, SHARD_BATCHES))
    parts = [
        (str(path), rows[low : low + size])
        for path, rows in zip(files, chosen, strict=True)
        for low in range(0, len(rows), size)
    ]
    return [Shard(number, path, rows) for number, (path, rows) in enumerate(parts)]


def example_files(examples: Path) -> list[Path]:
    """Files of the examples table, in order.

    Raises:
        UserError: there are none.
    """
    files = sorted(examples.glob("part-*.parquet"))
    if not files:
        raise UserError(f"{examples} holds no examples (part-*.parquet): run `rosepo prepare` first")
    return files


def most_seen(files: Sequence[Path], chosen: Sequence[Shard]) -> int:
    """Items that lie before the target of an example of the shards, at most."""
    most = 0
    for path in files:
        rows = [shard.rows for shard in chosen if shard.path == str(path)]
        if rows:
            positions = pq.read_table(path, columns=["position"], partitioning=None)["position"].to_numpy()
            most = max(most, int(positions[np.concatenate(rows)].max()))
    return most


def read_shard(shard: Shard) -> pa.Table:
    """The examples of a shard (columns example_id, user_id, position, history, target, seen: see `with_seen`); of the
    examples no more than its row groups are read."""
    columns = ["example_id", "user_id", "position", "history", "target"]
    with pq.ParquetFile(shard.path) as file:
        sizes = [file.metadata.row_group(index).num_rows for index in range(file.num_row_groups)]
        starts = np.cumsum([0, *sizes])
        first, last = np.searchsorted(starts, shard.rows[[0, -1]], side="right") - 1
        table = file.read_row_groups(list(range(first, last + 1)), columns=columns)
    return with_seen(table.take(pa.array(shard.rows - starts[first])), Path(shard.path))


def _training_rows(files: Sequence[Path], newest: int | None) -> list[np.ndarray]:
    """Rows (int32, ascending) of each file that become groups."""
    chosen: list[np.ndarray] = []
    # From the last file to the first: a user may go on in the next file, whose training rows count too.
    next_user, next_count = None, 0
    for path in reversed(files):
        columns = ["user_id", "split"]
        missing = [name for name in columns if name not in pq.read_schema(path).names]
        if missing:
            raise UserError(f"{path} has no column '{missing[0]}': run `rosepo prepare` again")
        table = pq.read_table(path, columns=columns, partitioning=None)
        train = pc.equal(table["split"], "train").to_numpy().astype(bool)
        users = table["user_id"].to_numpy()
        if not len(users):
            chosen.append(np.zeros(0, dtype=np.int32))
            continue
        run = np.cumsum(np.concatenate([[0], (users[1:] != users[:-1]).astype(np.int64)]))
        in_run = np.bincount(run, weights=train)
        carried = next_count if users[-1] == next_user else 0
        in_run[-1] += carried
        before = np.cumsum(train) - train
        first = np.searchsorted(run, np.arange(len(in_run)))
        newer = in_run[run] - (before - before[first][run]) - 1
        keep = train if newest is None else train & (newer < newest)
        chosen.append(np.flatnonzero(keep).astype(np.int32))
        next_user, next_count = users[0], int(in_run[0])
    return chosen[::-1]
