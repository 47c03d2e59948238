"""The plan of shards: which examples, in which order, in which batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rosepo.errors import UserError
from rosepo.sampling.plan import most_seen, plan_shards, read_shard


def write_examples(folder: Path, users: list[tuple[str, int]], files: int = 1, row_group: int = 4) -> pa.Table:
    """Users with that many training examples and one test example each, cut into files without regard for users."""
    rows = []
    for user, count in users:
        for position in range(1, count + 2):
            split = "train" if position <= count else "test"
            rows.append({"example_id": f"{user}:{position}", "user_id": user, "split": split, "position": position,
                         "history": list(range(position)), "target": position})  # fmt: skip
    table = pa.Table.from_pylist(rows)
    bounds = np.linspace(0, len(table), files + 1).astype(int)
    for number in range(files):
        part = table.slice(bounds[number], bounds[number + 1] - bounds[number])
        pq.write_table(part, folder / f"part-{number:05d}.parquet", row_group_size=row_group)
    return table


def planned_ids(examples: Path, newest: int | None, batch_size: int = 2) -> list[list[str]]:
    return [read_shard(shard)["example_id"].to_pylist() for shard in plan_shards(examples, newest, batch_size)]


USERS = [("ann", 3), ("bob", 1), ("cy", 7), ("dee", 0), ("eve", 2)]


@pytest.mark.parametrize("files", [1, 2, 5])
@pytest.mark.parametrize("newest", [None, 1, 2, 5])
def test_every_users_newest_training_examples_are_taken_in_order(
    tmp_path: Path, files: int, newest: int | None
) -> None:
    write_examples(tmp_path, USERS, files)
    expected = [
        f"{user}:{position}"
        for user, count in USERS
        for position in range(max(1, count + 1 - (newest or count)), count + 1)
    ]
    assert [name for shard in planned_ids(tmp_path, newest) for name in shard] == expected


def test_shards_are_whole_batches_of_one_file(tmp_path: Path) -> None:
    write_examples(tmp_path, [("ann", 1000)])
    shards = plan_shards(tmp_path, None, 8)
    assert [shard.number for shard in shards] == list(range(len(shards)))
    sizes = [len(shard.rows) for shard in shards]
    assert sum(sizes) == 1000
    assert len(set(sizes[:-1])) == 1
    assert sizes[0] % 8 == 0
    assert 10 <= len(shards) <= 17


def test_the_most_items_before_a_target_of_the_shards_are_found(tmp_path: Path) -> None:
    write_examples(tmp_path, USERS, 2)
    files = sorted(tmp_path.glob("part-*"))
    assert most_seen(files, plan_shards(tmp_path, None, 2)) == 7


def test_a_folder_without_examples_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="rosepo prepare"):
        plan_shards(tmp_path, None, 8)


def test_a_table_without_training_examples_is_refused(tmp_path: Path) -> None:
    write_examples(tmp_path, [("ann", 0)])
    with pytest.raises(UserError, match="no training examples"):
        plan_shards(tmp_path, None, 8)
