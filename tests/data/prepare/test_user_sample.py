"""A few users of a prepared log: all of theirs, and nothing of others."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from rosepo.data.prepare.user_sample import TABLES, keep_users
from rosepo.data.seen import SEQUENCES

PARTS = {"part-00000.parquet": range(0, 40), "part-00001.parquet": range(40, 50), "part-00002.parquet": range(50, 60)}


def write_examples(folder: Path) -> None:
    """Sixty users with three rows each in every table, and one in that of whole sequences."""
    for name in TABLES:
        (folder / name).mkdir(exist_ok=True)
        for part, users in PARTS.items():
            count = 1 if name == SEQUENCES else 3
            rows = [{"user_id": f"u{user}", "row": row} for user in users for row in range(count)]
            pq.write_table(pa.Table.from_pylist(rows), folder / name / part)


def users_of(folder: Path) -> list[str]:
    return [
        user for file in sorted(folder.glob("part-*.parquet")) for user in pq.read_table(file)["user_id"].to_pylist()
    ]


def test_the_users_that_are_left_have_all_of_their_rows_in_every_table(tmp_path: Path) -> None:
    write_examples(tmp_path)
    assert keep_users(tmp_path, 7) == 7
    left = users_of(tmp_path)
    assert len(left) == 21
    assert len(set(left)) == 7
    for name in TABLES:
        assert set(users_of(tmp_path / name)) == set(left)
        assert len(users_of(tmp_path / name)) == (7 if name == SEQUENCES else 21)


def test_more_of_them_hold_fewer_whatever_their_parts(tmp_path: Path) -> None:
    found = []
    for count in (5, 20):
        folder = tmp_path / str(count)
        folder.mkdir()
        write_examples(folder)
        keep_users(folder, count)
        found.append(set(users_of(folder)))
    assert found[0] < found[1]


def test_asked_for_more_than_there_are_it_leaves_all(tmp_path: Path) -> None:
    write_examples(tmp_path)
    assert keep_users(tmp_path, 1000) == 60
