"""What a user had chosen before an example, also what the example's cut history no longer shows.

An example's `history` is what a model is given to read, at most `prepare.max_history` items. What may not be
recommended or rejected is everything before the target: it is looked up in `_sequences`, one row a user, stored once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rosepo.data.item_columns import INDEX
from rosepo.data.random import example_keys
from rosepo.utils.arrays import ranges
from rosepo.utils.errors import UserError

SEQUENCES = "_sequences"
TRAJECTORIES = "_trajectories"
_ROWS = 8_192  # of training sequences at once
COLUMNS = ("example_id", "user_id", "position", "history", "target")


def with_seen(table: pa.Table, path: Path) -> pa.Table:
    """The rows with a column `seen`: items before the target, oldest first, of which `history` is the end.

    Args:
        table: rows of the examples file `path`, columns user_id, position, history.
        path: where they come from; `_sequences` beside it has a file of the same name with the same users. A table that
            was made without one is taken at its word: nothing was seen but the history.

    Raises:
        UserError: a user, or as many items as a position says, are not there.
    """
    source = path.parent / SEQUENCES / path.name
    if not source.exists():
        return table.append_column("seen", table["history"].cast(pa.large_list(INDEX)))
    sequences = pq.read_table(source, partitioning=None)
    items = sequences["items"].combine_chunks()
    row = pc.index_in(table["user_id"].combine_chunks(), sequences["user_id"].combine_chunks())
    lengths = table["position"].to_numpy().astype(np.int64)
    if row.null_count or (items.value_lengths().to_numpy()[row.to_numpy()] < lengths).any():
        raise UserError(f"{source} does not hold the users of {path}: run `rosepo prepare` again")
    starts = items.offsets.to_numpy()[row.to_numpy()].astype(np.int64)
    values = items.values.take(pa.array(ranges(starts, lengths)))
    offsets = pa.array(np.append(0, np.cumsum(lengths, dtype=np.int64)))
    # Each of a long sequence's items is there as often as examples follow it: more than 2^31 in all may be.
    return table.append_column("seen", pa.LargeListArray.from_arrays(offsets, values))


def example_files(examples: Path) -> list[Path]:
    """Files of the examples table, in order.

    Raises:
        UserError: there are none.
    """
    files = sorted(examples.glob("part-*.parquet"))
    if not files:
        raise UserError(f"{examples} holds no examples (part-*.parquet): run `rosepo prepare` first")
    return files


def read_split(folder: Path, split: str, limit: int | None = None, extra: tuple[str, ...] = ()) -> Iterator[pa.Table]:
    """The examples of a split, file by file and in order: columns example_id, user_id, history, target, seen, `extra`.

    Args:
        folder: the examples table.
        split: train, validation or test.
        limit: keep this many, those with the smallest hash of example_id.
        extra: columns that are read too where the table has them.

    Raises:
        UserError: no files of examples.
    """
    paths = example_files(folder)
    threshold = None if limit is None else _threshold(paths, split, limit)
    for path in paths:
        columns = [name for name in (*COLUMNS, *extra) if name in pq.read_schema(path).names]
        table = pq.read_table(path, columns=columns, filters=[("split", "==", split)])
        if threshold is not None:
            table = table.filter(pa.array(example_keys(table["example_id"].to_numpy()) <= threshold))
        wanted = ("example_id", "user_id", "history", "target", "seen", *extra)
        table = with_seen(table, path)
        yield table.select([name for name in wanted if name in table.column_names])


def trajectory_batches(examples: Path, columns: tuple[str, ...] = ("items", "n_targets")) -> Iterator[pa.Table]:
    """The training sequences of an examples table in order, some thousand at a time.

    Args:
        columns: of user_id, items (indexes, oldest first) and n_targets, how many of a row's last items are targets.
    """
    for path in sorted((examples / TRAJECTORIES).glob("*.parquet")):
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_ROWS, columns=list(columns)):
                yield pa.Table.from_batches([batch])


def _threshold(paths: Sequence[Path], split: str, limit: int) -> np.uint64 | None:
    """The hash up to which examples are kept; None where there are no more than `limit`."""
    filters = [("split", "==", split)]
    ids = [pq.read_table(path, columns=["example_id"], filters=filters)["example_id"].to_numpy() for path in paths]
    everything = example_keys(np.concatenate(ids))
    return np.partition(everything, limit - 1)[limit - 1] if limit < len(everything) else None
