"""The groups table as alignment reads it: its columns, and which rows are a user's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from rosepo.config import Config
from rosepo.objectives.registry import OBJECTIVES
from rosepo.run.paths import RunPaths
from rosepo.training.feed.encoders import (
    GROUP_COLUMNS,
    REJECTED_COLUMNS,
    SHARES_COLUMN,
    USER_COLUMN,
    run_bounds,
)
from rosepo.training.feed.parquet_rows import ParquetRows
from rosepo.utils.errors import UserError


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
    """The columns of groups that training reads."""
    train = config.align
    objective = OBJECTIVES[train.loss]
    unread = {"ref_logps"} if objective.reference_free else set()
    unread |= set() if objective.reads_rejected else REJECTED_COLUMNS
    unread |= set() if "weights" in objective.inputs else {"oracle_rest"}
    columns = [name for name in GROUP_COLUMNS if name not in unread]
    columns += [SHARES_COLUMN] if config.learns_whole else []
    return columns + ([USER_COLUMN] if config.trajectories else [])


def groups_table(columns: list[str], paths: RunPaths) -> ParquetRows:
    """The finished groups.

    Raises:
        UserError: there are none, or a column is not there.
    """
    table = ParquetRows(paths.groups, columns)
    missing = [name for name in columns if name not in table.names]
    if missing == [SHARES_COLUMN]:
        raise UserError(
            f"{paths.groups} has no column '{SHARES_COLUMN}', which align.loss=distill reads with "
            "pairs.oracle_whole=true: run `rosepo pairs --overwrite` again"
        )
    if missing == ["oracle_rest"]:
        raise UserError(
            f"{paths.groups} has no column 'oracle_rest', which align.loss=distill reads: its titles were not drawn "
            "from the oracle; run `rosepo pairs --overwrite` with --set 'pairs.strategies={oracle: 1}'"
        )
    if missing:
        raise UserError(
            f"{paths.groups} has no column '{missing[0]}': groups of titles alone (pairs.score=false) cannot be "
            "trained on; run `rosepo pairs --overwrite` with --set pairs.score=true"
        )
    return table
