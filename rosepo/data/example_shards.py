"""Which examples become groups, and in which shards: decided before any actor starts, from the table alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rosepo.config import PairsConfig
from rosepo.data.seen import COLUMNS, example_files, with_seen
from rosepo.utils.arrays import segment_starts
from rosepo.utils.errors import UserError

SHARDS = 16
"""Shards of a small table, so that a few actors finish together."""
LEAST_GROUPS = 256
"""Groups of a shard at least: fewer are not worth a part file."""
MOST_GROUPS = 8_192
"""Groups of a shard at most: bounds an actor's memory, and the work that a lost actor repeats."""
MOST_TITLE_GROUPS = 32_768
"""The same for titles alone, which take a hundredth of the time."""
VALIDATION = -1
"""Number of the shard of validation examples."""
VALIDATION_FILE = "_validation.parquet"
"""What holds its groups, in the folder of the others."""


@dataclass(frozen=True)
class Shard:
    """Consecutive training examples of one file, which one actor turns into one part file.

    Attributes:
        number: of the part file; VALIDATION for the examples that are held out, which stand in a file by themselves.
        path: the examples' file.
        first, count: place of the first one among the file's examples that become groups (`chosen_rows`), and how many.
    """

    number: int
    path: str
    first: int
    count: int

    @property
    def key(self) -> str:
        """What the part file holds, for a later run that goes on with it."""
        return f"{Path(self.path).name}[{self.first}:{self.first + self.count}]"


def plan_shards(
    examples: Path, newest: int | None, part_groups: int | None = None, most: int = MOST_GROUPS
) -> list[Shard]:
    """Every user's `newest` training examples (all where None), in the order of the table.

    A shard holds groups of one file.

    Args:
        examples: the examples table.
        newest: of each user; users are not split between files.
        part_groups: groups of a shard; None goes by the size of the table.
        most: groups of a shard at most, where the size of the table decides.

    Raises:
        UserError: no examples table, one without the columns, or one without training examples.
    """
    counts = {str(path): len(chosen_rows(str(path), newest)) for path in example_files(examples)}
    total = sum(counts.values())
    if not total:
        raise UserError(f"{examples} holds no training examples: lower prepare.min_history, or take more data")
    size = part_groups or int(np.clip(-(-total // SHARDS), LEAST_GROUPS, most))
    parts = [(path, low, min(size, n - low)) for path, n in counts.items() for low in range(0, n, size)]
    return [Shard(number, *part) for number, part in enumerate(parts)]


def shards_of(pairs: PairsConfig, examples: Path) -> list[Shard]:
    """The shards that the settings of `pairs` make of an examples table; see `plan_shards`."""
    most = MOST_GROUPS if pairs.score else MOST_TITLE_GROUPS
    return plan_shards(examples, pairs.newest, pairs.part_groups, most)


def planned_users(examples: Path, newest: int | None) -> Iterator[pa.ChunkedArray]:
    """The user of every group in the order of the table, file by file: known before there is a group."""
    for path in example_files(examples):
        yield pq.read_table(path, columns=["user_id"], partitioning=None)["user_id"].take(
            pa.array(chosen_rows(str(path), newest))
        )


def check_columns(examples: Path, candidates: bool) -> None:
    """Refuse examples without a column that sampling reads; `candidates` is one if asked for.

    Raises:
        UserError: naming file, column and remedy.
    """
    for path in example_files(examples):
        names = pq.read_schema(path).names
        if candidates and "candidates" not in names:
            raise UserError(
                f"{path} has no candidate lists, which pairs.strategies.candidates draws from and prompts list under"
                " model.template.candidates=true: set prepare.candidates to at least 2 and run `rosepo prepare` again"
            )
        missing = [name for name in (*COLUMNS, "split") if name not in names]
        if missing:
            raise UserError(f"{path} has no column '{missing[0]}': run `rosepo prepare` again")


def chosen_rows(path: str, newest: int | None) -> np.ndarray:
    """Rows int64, ascending, of an examples file that become groups.

    Raises:
        UserError: not the file of an examples table.
    """
    return _chosen_rows(path, newest, Path(path).stat().st_mtime_ns)


@lru_cache(maxsize=1)  # a shard is often followed by the next one of its file
def _chosen_rows(path: str, newest: int | None, changed: int) -> np.ndarray:
    columns = ["user_id", "split"]
    missing = [name for name in columns if name not in pq.read_schema(path).names]
    if missing:
        raise UserError(f"{path} has no column '{missing[0]}': run `rosepo prepare` again")
    table = pq.read_table(path, columns=columns, partitioning=None)
    rows = np.flatnonzero(pc.equal(table["split"], "train").to_numpy())
    if newest is None or not len(rows):
        return rows
    users = table["user_id"].to_numpy()[rows]
    ends = np.append(segment_starts(users)[1:], len(rows))
    behind = np.repeat(ends, np.diff(np.append(0, ends))) - np.arange(len(rows))
    return rows[behind <= newest]


def most_seen(examples: Path, newest: int | None) -> int:
    """Items that lie before the target of an example that becomes a group, at most."""
    most = 0
    for path in example_files(examples):
        positions = pq.read_table(path, columns=["position"], partitioning=None)["position"].to_numpy()
        most = max(most, int(positions[chosen_rows(str(path), newest)].max(initial=0)))
    return most


def read_shard(shard: Shard, newest: int | None, extra: tuple[str, ...] = ()) -> pa.Table:
    """The examples of a shard: `COLUMNS`, `extra` ones and `seen` (see `with_seen`).

    No more than its row groups are read of the file.
    """
    if shard.number == VALIDATION:
        return pq.read_table(shard.path)
    rows = chosen_rows(shard.path, newest)[shard.first : shard.first + shard.count]
    with pq.ParquetFile(shard.path) as file:
        sizes = [file.metadata.row_group(index).num_rows for index in range(file.num_row_groups)]
        starts = np.cumsum([0, *sizes])
        first, last = np.searchsorted(starts, rows[[0, -1]], side="right") - 1
        table = file.read_row_groups(list(range(first, last + 1)), columns=[*COLUMNS, *extra])
    return with_seen(table.take(pa.array(rows - starts[first])), Path(shard.path))
