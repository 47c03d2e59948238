"""Reading a table while its parts are still being written."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rosepo.training.feed.encoders import GroupEncoder
from rosepo.training.feed.incremental_table import MAKING, IncrementalTable, wanted_order
from rosepo.training.feed.parquet_rows import ParquetRows
from rosepo.training.feed.plan import FeedPlan
from rosepo.utils.errors import StageError

SIZES = (5, 2, 9, 4)


def write(folder: Path, part: int, column: str = "row") -> None:
    """A part, whole or not there."""
    start = sum(SIZES[:part])
    aside = folder / f".{part}.tmp"
    pq.write_table(pa.table({column: np.arange(start, start + SIZES[part])}), aside)
    aside.replace(folder / name(part))


def name(part: int) -> str:
    return f"part-{part:05d}.parquet"


@pytest.fixture
def table(tmp_path: Path) -> IncrementalTable:
    """A table of which nothing is there yet, beside an older one in the place where it will go."""
    (tmp_path / "partial").mkdir()
    (tmp_path / "partial" / MAKING).touch()
    (tmp_path / "final").mkdir()
    for part in range(4):
        pq.write_table(pa.table({"row": [-1] * SIZES[part]}), tmp_path / "final" / name(part))
    return IncrementalTable(tmp_path / "partial", tmp_path / "final", tuple(map(name, range(4))), SIZES)


def test_rows_are_waited_for_and_never_those_of_an_older_table(table: IncrementalTable) -> None:
    rows = table.open(["row"])
    assert len(rows) == 20
    asked = [np.array([19, 3, 16]), np.array([5, 15, 6]), np.arange(20)[::-1]]
    taken: list[list[int]] = []

    def read() -> None:
        for indices in asked:
            rows.ready(indices)
            taken.append(rows.take(indices)["row"].to_pylist())

    reader = threading.Thread(target=read)
    reader.start()
    write(table.folder, 0)
    reader.join(timeout=0.3)  # time to take what may not be taken yet
    assert not taken
    write(table.folder, 3)
    write(table.folder, 1)
    while not taken:
        reader.join(timeout=0.05)
    reader.join(timeout=0.3)
    assert len(taken) == 1
    write(table.folder, 2)
    table.final.rename(table.final.with_name("old"))
    table.folder.rename(table.final)  # with the marker: nobody looks for it there
    reader.join(timeout=30)
    assert taken == [indices.tolist() for indices in asked]
    assert rows.take(np.array([7, 0]))["row"].to_pylist() == [7, 0]
    for missing in table.final.glob("part-*"):
        missing.unlink()
    with pytest.raises(StageError, match=r"final has no part-00001\.parquet"):
        table.open(["row"]).take(np.array([5]))


def test_parts_that_nobody_makes_any_more_are_told_of_also_where_others_are_there(table: IncrementalTable) -> None:
    rows = table.open(["row"])
    write(table.folder, 0)
    rows.ready(np.array([4]))
    (table.folder / MAKING).unlink()
    with pytest.raises(StageError, match="is not made any more"):
        rows.ready(np.array([4]))
    with pytest.raises(StageError, match="nobody makes it any more"):
        rows.take(np.array([5]))
    for part in (1, 2, 3):
        write(table.folder, part)
    rows.ready(np.arange(20))  # complete: who made it has gone because it is done
    assert rows.take(np.array([19]))["row"].to_pylist() == [19]


def test_a_part_of_another_length_is_refused(table: IncrementalTable) -> None:
    pq.write_table(pa.table({"row": [1, 2, 3]}), table.folder / name(0))
    with pytest.raises(StageError, match=r"part-00000.parquet holds 3 rows in place of 5"):
        table.open(["row"]).take(np.array([0]))


@given(st.lists(st.integers(1, 12), min_size=1, max_size=12), st.integers(1, 9), st.integers(0, 9))
def test_parts_are_wanted_in_the_order_in_which_the_first_epoch_takes_their_rows(
    sizes: list[int], batch: int, seed: int
) -> None:
    parts = tuple(map(str, range(len(sizes))))
    table = IncrementalTable(Path("a"), Path("b"), parts, tuple(sizes))
    plan = FeedPlan(Path("a"), (), GroupEncoder(), sum(sizes), batch, batch, seed, 2.0, window=max(sizes))
    order = wanted_order(plan, table)
    assert sorted(order) == list(range(len(sizes)))
    ends = np.cumsum(sizes)
    taken = np.concatenate([plan.schedule.indices(step) for step in range(plan.schedule.steps_per_epoch)])
    met: list[int] = []  # parts as far as windows (of as many rows as the largest part) have been begun
    for start in dict.fromkeys((taken // max(sizes) * max(sizes)).tolist()):
        rows = np.arange(start, min(start + max(sizes), sum(sizes)))
        met += [part for part in np.searchsorted(ends, rows, side="right").tolist() if part not in met]
    assert order == list(dict.fromkeys(met))


def test_a_finished_folder_is_ready_at_once(tmp_path: Path) -> None:
    pq.write_table(pa.table({"row": [1, 2]}), tmp_path / name(0))
    ParquetRows(tmp_path).ready(np.array([1]))
