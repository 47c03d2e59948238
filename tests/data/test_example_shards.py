"""The plan of shards: which examples, in which order, in which batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rosepo.data.example_shards import LEAST_GROUPS, most_seen, plan_shards, read_shard
from rosepo.utils.errors import UserError
from tests.helpers import run_table


def write_examples(folder: Path, users: list[tuple[str, int]], files: int = 1, row_group: int = 4) -> pa.Table:
    """Users with that many training examples and one test example each, in files of whole users."""
    rows = []
    for user, count in users:
        for position in range(1, count + 2):
            split = "train" if position <= count else "test"
            rows.append({"example_id": f"{user}:{position}", "user_id": user, "split": split, "position": position,
                         "history": list(range(position)), "target": position})  # fmt: skip
    table = run_table(rows)
    last = np.cumsum([count + 1 for _, count in users])
    bounds = [0, *(int(last[len(users) * number // files - 1]) for number in range(1, files)), len(table)]
    for number in range(files):
        part = table.slice(bounds[number], bounds[number + 1] - bounds[number])
        pq.write_table(part, folder / f"part-{number:05d}.parquet", row_group_size=row_group)
    return table


def planned_ids(examples: Path, newest: int | None) -> list[list[str]]:
    return [read_shard(shard, newest)["example_id"].to_pylist() for shard in plan_shards(examples, newest)]


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


@pytest.mark.parametrize(
    ("part_groups", "most", "size"), [(None, 10**6, 438), (None, 300, 300), (7, 300, 7), (10**6, 300, 10**6)]
)
def test_shards_are_of_one_size_and_of_one_file(tmp_path: Path, part_groups: int | None, most: int, size: int) -> None:
    write_examples(tmp_path, [("ann", 4000), ("bob", 3000)], files=2)
    shards = plan_shards(tmp_path, None, part_groups, most)
    assert [shard.number for shard in shards] == list(range(len(shards)))
    for path, total in zip(sorted(tmp_path.glob("part-*")), (4000, 3000), strict=True):
        mine = [shard for shard in shards if shard.path == str(path)]
        assert [shard.first for shard in mine] == list(range(0, total, size))
        assert sum(shard.count for shard in mine) == total


def test_small_tables_are_not_cut_into_many_files(tmp_path: Path) -> None:
    write_examples(tmp_path, [("ann", 2 * LEAST_GROUPS)])
    assert [shard.count for shard in plan_shards(tmp_path, None)] == [LEAST_GROUPS] * 2


def test_the_most_items_before_a_target_are_found(tmp_path: Path) -> None:
    write_examples(tmp_path, USERS, 2)
    assert most_seen(tmp_path, None) == 7


def test_a_table_that_was_made_again_is_planned_again(tmp_path: Path) -> None:
    write_examples(tmp_path, [("ann", 3)])
    assert sum(shard.count for shard in plan_shards(tmp_path, None)) == 3
    write_examples(tmp_path, [("ann", 5)])
    assert sum(shard.count for shard in plan_shards(tmp_path, None)) == 5


def test_a_folder_without_examples_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="rosepo prepare"):
        plan_shards(tmp_path, None)


def test_a_table_without_training_examples_is_refused(tmp_path: Path) -> None:
    write_examples(tmp_path, [("ann", 0)])
    with pytest.raises(UserError, match="no training examples"):
        plan_shards(tmp_path, None)
