"""The groups table as alignment reads it: its columns, and which rows are a user's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rosepo.config import LOSSES, Config
from rosepo.run.paths import RunPaths
from rosepo.training.feed.encoders import (
    GROUP_COLUMNS,
    SHARES_COLUMN,
    USER_COLUMN,
    run_bounds,
)
from rosepo.training.feed.parquet_rows import ParquetRows, part_files
from rosepo.utils.errors import UserError

_OF_INPUT: dict[str, tuple[str, ...]] = {
    "ref_logps": ("ref_logps",),
    "epsilon": ("epsilon",),
    "targets": ("oracle_scores",),
    "weights": ("oracle_scores", "oracle_rest"),
    "counts": (),
}
"""The columns that the inputs of a loss are made of."""


def user_offsets(users: Iterable[pa.ChunkedArray]) -> np.ndarray:
    """Where the rows of each user begin in a groups table, int64 [n_users + 1].

    Args:
        users: the column `user_id` in order, chunk by chunk. A user is a run of rows of one value.
    """
    parts, before, last = [np.zeros(1, dtype=np.int64)], 0, None
    for column in users:
        if not len(column):
            continue
        begins = np.array(run_bounds(column)[:-1], dtype=np.int64) + before
        parts.append(begins[1:] if last is None or last == column[0] else begins)
        before, last = before + len(column), column[-1]
    return np.concatenate([*parts, [before]])


def users_of(groups: Path) -> Iterator[pa.ChunkedArray]:
    """The column `user_id` of a finished table, a row group at a time."""
    return (chunk[USER_COLUMN] for chunk in ParquetRows(groups, [USER_COLUMN]).chunks())


def columns_read(config: Config) -> list[str]:
    """The columns of groups that training reads: those that the loss has a use for."""
    loss = LOSSES[config.align.loss]
    read = {"example_id", "prompt_ids", "chosen_ids"} | ({"rejected_ids", "strategy"} if loss.reads_rejected else set())
    read |= {column for name in loss.inputs for column in _OF_INPUT[name]}
    columns = [name for name in GROUP_COLUMNS if name in read]
    columns += [SHARES_COLUMN] if config.learns_whole else []
    return columns + ([USER_COLUMN] if config.trajectories else [])


def groups_table(columns: list[str], paths: RunPaths, loss: str) -> ParquetRows:
    """The finished groups; `loss` is what `columns` are read for.

    Raises:
        UserError: there are none, or a column is not there.
    """
    table = ParquetRows(paths.groups, columns)
    missing = [name for name in columns if name not in table.names]
    if missing == [SHARES_COLUMN]:
        raise UserError(
            f"{paths.groups} has no column '{SHARES_COLUMN}', which align.loss={loss} reads with "
            "pairs.oracle_whole=true: run `rosepo pairs --overwrite` again"
        )
    if SHARES_COLUMN in columns and not missing:
        kind = pq.read_schema(part_files(paths.groups)[0]).field(SHARES_COLUMN).type
        if kind.value_type != pa.uint16():
            raise UserError(
                f"{paths.groups} has '{SHARES_COLUMN}' as {kind.value_type}, as an older version wrote it, not the "
                "codes (uint16) that are read now: run `rosepo pairs --overwrite` again"
            )
    if missing == ["oracle_rest"]:
        raise UserError(
            f"{paths.groups} has no column 'oracle_rest', which align.loss={loss} reads: its titles were not drawn "
            "from the oracle; run `rosepo pairs --overwrite` with --set 'pairs.strategies={oracle: 1}'"
        )
    if missing:
        raise UserError(
            f"{paths.groups} has no column '{missing[0]}': groups of titles alone (pairs.score=false) cannot be "
            "trained on; run `rosepo pairs --overwrite` with --set pairs.score=true"
        )
    return table
