"""Part files: whole or not there, and reused only by a table that is made from the same things."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rosepo.data.example_shards import Shard
from rosepo.sampling.group_files import complete, finished_parts, part_path, write_part
from rosepo.sampling.tally import Tally
from rosepo.utils.errors import StageError

SHARDS = [Shard(0, "examples/part-00000.parquet", 0, 3), Shard(1, "examples/part-00000.parquet", 3, 2)]


def write(folder: Path, shard: Shard, origin: str = "now") -> None:
    tally = Tally()
    tally.totals["groups"] = shard.count
    write_part(folder, shard, origin, pa.table({"example_id": [str(row) for row in range(shard.count)]}), tally)


def test_finished_parts_are_found_with_their_figures(tmp_path: Path) -> None:
    write(tmp_path, SHARDS[0])
    found = finished_parts(tmp_path, SHARDS, "now")
    assert list(found) == [0]
    assert found[0]["totals"] == {"groups": 3}
    assert "write" in found[0]["seconds"]


def test_a_table_is_complete_with_all_its_parts_and_then_holds_nothing_else(tmp_path: Path) -> None:
    write(tmp_path, SHARDS[0])
    with pytest.raises(StageError, match="1 of 2 shards of groups were not written"):
        complete(tmp_path, SHARDS)
    write(tmp_path, SHARDS[1])
    complete(tmp_path, SHARDS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["part-00000.parquet", "part-00001.parquet"]


def test_parts_of_other_models_or_other_code_are_made_again(tmp_path: Path) -> None:
    write(tmp_path, SHARDS[0], origin="before")
    assert finished_parts(tmp_path, SHARDS, "now") == {}
    assert not list(tmp_path.iterdir())


def test_parts_of_a_table_that_was_cut_elsewhere_are_made_again(tmp_path: Path) -> None:
    write(tmp_path, SHARDS[0])
    write(tmp_path, SHARDS[1])
    other = [Shard(0, SHARDS[0].path, 0, 5)]
    assert finished_parts(tmp_path, other, "now") == {}
    assert not list(tmp_path.iterdir())


def test_a_part_that_lost_its_end_is_made_again(tmp_path: Path) -> None:
    write(tmp_path, SHARDS[0])
    path = part_path(tmp_path, SHARDS[0])
    path.write_bytes(path.read_bytes()[:-20])
    write(tmp_path, SHARDS[1])
    pq.write_table(pa.table({"example_id": ["only"]}), part_path(tmp_path, SHARDS[1]))
    assert finished_parts(tmp_path, SHARDS, "now") == {}
    assert not list(tmp_path.iterdir())
