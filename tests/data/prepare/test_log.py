"""Blocks to counts and buckets, in this process."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from rosepo.data.prepare import first_pass, log
from rosepo.data.prepare.first_pass import merge_scans, scan
from rosepo.data.prepare.log import Codes, LocalBlocks
from rosepo.data.prepare.ties import TieBreaker
from rosepo.data.readers.interactions import interaction_schema, plan_reading
from rosepo.utils.console import Progress
from tests.data.tables import Row, config_for, write_data

SCHEMA = pa.schema(
    [("user_id", pa.int64()), ("item_id", pa.string()), ("rating", pa.float64()), ("timestamp", pa.float64())]
)


def block(number: int) -> pa.Table:
    """One user who is in every block, one who is in this one alone."""
    return pa.table([[0, number, 0], ["a", "b", "b"], [5.0, 1.0, None], [1.0, 2.0, 3.0]], schema=SCHEMA)


def test_scans_of_all_blocks_add_up_to_that_of_their_rows() -> None:
    blocks = [block(number) for number in range(1, 101)]
    merged = merge_scans((scan(table, 3.0) for table in blocks), SCHEMA)
    whole = scan(pa.concat_tables(blocks), 3.0)
    assert merged["unrated"].to_pylist() == [100]
    for name in ("user", "item"):
        names = [name, f"{name}_rows", f"{name}_positives"]
        found, wanted = (set(zip(*(scanned[key].to_pylist() for key in names))) for scanned in (merged, whole))
        assert found == wanted
        assert len(merged[name]) == len(found)


def test_few_scans_are_held_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    merge = first_pass._merged

    def counting(held: Sequence[dict[str, pa.Array]]) -> dict[str, pa.Array]:
        sizes.append(len(held))
        return merge(held)

    monkeypatch.setattr(first_pass, "_merged", counting)
    merge_scans((scan(block(1), None) for _ in range(200)), SCHEMA)
    assert max(sizes) <= first_pass.MERGE_SCANS + 1
    assert len(sizes) > 1


def test_no_block_is_no_user() -> None:
    merged = merge_scans(iter(()), SCHEMA)
    assert [len(merged[name]) for name in ("user", "item")] == [0, 0]
    assert merged["user"].type == pa.int64()


@pytest.fixture
def rows() -> list[Row]:
    rng = np.random.default_rng(0)
    return [
        (user, item, 5.0, float(time))
        for user, item, time in zip(*(rng.integers(0, high, 600).tolist() for high in (50, 20, 99)))
    ]


def test_buckets_hold_whole_users_and_every_first_interaction(
    tmp_path: Path, rows: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "BUCKET_ROWS", 100)
    data = write_data(tmp_path, rows, {item: f"t{item}" for item in range(20)})
    plan = plan_reading(config_for(data).data, "interactions")
    counts = Counter(user for user, *_ in rows)
    users = pa.array(sorted(counts))
    starts = log.bucket_starts(np.array([counts[user] for user in users.to_pylist()]))
    items = pa.array(range(20))
    buckets = (
        LocalBlocks(plan, Progress("reading", None))
        .log(Codes(None, users, items, starts, TieBreaker.of("hash", 0, users, items)))
        .buckets
    )
    assert interaction_schema(plan).field("user_id").type == pa.int64()
    assert len(buckets) == len(starts) > 2
    edges = [*starts.tolist(), len(users)]
    for number, bucket in enumerate(buckets):
        assert edges[number] <= bucket["user"].min() <= bucket["user"].max() < edges[number + 1]
    found = [
        (users[user].as_py(), item, time)
        for bucket in buckets
        for user, item, time in zip(bucket["user"].tolist(), bucket["item"].tolist(), bucket["time"].tolist())
    ]
    first: dict[tuple[int, int], float] = {}
    for user, item, _, time in rows:
        first[user, item] = min(time, first.get((user, item), time))
    assert sorted(found) == sorted((user, item, time) for (user, item), time in first.items())
