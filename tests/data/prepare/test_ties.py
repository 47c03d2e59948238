"""What orders interactions at one time: content, the files, or ids; never readers, blocks or other rows."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rosepo.config import Config
from rosepo.data.prepare.prepare import inspect_data, measure
from rosepo.data.prepare.statistics import describe
from rosepo.data.prepare.ties import TieBreaker
from tests.data import slow
from tests.data.tables import Row, config_for, prepared, write_data

ITEMS = {item: f"Title {item}" for item in range(1, 13)}
few_times = st.lists(
    st.tuples(st.integers(1, 4), st.integers(1, 12), st.just(5.0), st.integers(0, 3).map(float)),
    min_size=12,
    max_size=60,
)


def files_of(folder: Path, rows: list[Row], n_files: int, row_group: int) -> dict[str, str]:
    """The rows, in order, as files of several blocks each."""
    data = write_data(folder, rows, ITEMS)
    table = pq.read_table(data["interactions"])
    (folder / "log").mkdir()
    for number, places in enumerate(np.array_split(np.arange(len(rows)), n_files)):
        part = table.take(pa.array(places))
        pq.write_table(part, folder / "log" / f"part-{number:02d}.parquet", row_group_size=row_group)
    return {**data, "interactions": str(folder / "log")}


def sequences(config: Config) -> dict[Any, list[Any]]:
    """Every user's items in order, of a log where all have an example."""
    examples, _, _ = prepared(config)
    return {row["user_id"]: [*row["history"], row["target"]] for row in examples}


@settings(max_examples=20, deadline=None)
@given(rows=few_times, shuffle=st.randoms(), n_files=st.integers(1, 4), row_group=st.integers(3, 9))
def test_the_hash_does_not_look_at_files_blocks_or_rows(
    rows: list[Row], shuffle: random.Random, n_files: int, row_group: int
) -> None:
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as several:
        whole = prepared(config_for(write_data(Path(one), rows, ITEMS), k_core=1))[0]
        shuffled = shuffle.sample(rows, len(rows))
        parts = prepared(config_for(files_of(Path(several), shuffled, n_files, row_group), k_core=1))[0]
    assert whole == parts


@settings(max_examples=20, deadline=None)
@given(rows=few_times, n_files=st.integers(1, 4), row_group=st.integers(3, 9))
def test_file_keeps_the_order_of_rows_over_files_and_blocks(rows: list[Row], n_files: int, row_group: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        config = config_for(files_of(Path(folder), rows, n_files, row_group), k_core=1, ties="file")
        assert prepared(config)[0] == slow.examples(rows, config)


@pytest.mark.parametrize("rows_of", [lambda rows: rows, lambda rows: rows[::-1]], ids=["as written", "reversed"])
def test_file_is_the_order_that_was_written(tmp_path: Path, rows_of: Any) -> None:
    rows = rows_of([(1, item, 5.0, 7.0) for item in (5, 3, 9, 1, 12, 4)])
    config = config_for(files_of(tmp_path, rows, 3, 1), k_core=1, ties="file")
    assert sequences(config) == {1: [item for _, item, _, _ in rows]}


def test_item_id_is_the_order_of_ids_as_numbers_or_as_text(tmp_path: Path) -> None:
    rows = [(1, item, 5.0, 7.0) for item in (30, 4, 12)]
    config = config_for(write_data(tmp_path, rows, {4: "a", 12: "b", 30: "c"}), k_core=1, ties="item_id")
    assert sequences(config) == {1: [4, 12, 30]}
    text = [("u", str(item), 5.0, 7.0) for item in (30, 4, 12)]
    data = write_data(tmp_path, text, {"4x": "a", "30": "b", "12": "c", "4": "d"})
    assert sequences(config_for(data, k_core=1, ties="item_id")) == {"u": ["12", "30", "4"]}


def test_the_hash_leaves_time_alone_and_puts_any_item_of_a_tie_last(tmp_path: Path) -> None:
    rows = [(user, item, 5.0, float(item > 4)) for user in range(1, 601) for item in (4, 3, 9, 5, 7)]
    found = sequences(config_for(write_data(tmp_path, rows, ITEMS), k_core=1))
    assert all({*items[:2]} == {3, 4} for items in found.values())
    last = np.unique([items[-1] for items in found.values()], return_counts=True)
    assert last[0].tolist() == [5, 7, 9]
    assert last[1].min() > 200 - 4 * np.sqrt(600 * 2 / 9)  # four standard deviations below a third


def test_seeds_order_ties_differently_and_types_of_ids_do_not(tmp_path: Path) -> None:
    rows = [(user, item, 5.0, 7.0) for user in range(1, 30) for item in range(1, 9)]
    data = write_data(tmp_path, rows, ITEMS)
    first, again, other = (sequences(config_for(data, seed=seed, k_core=1)) for seed in (0, 0, 1))
    assert first == again
    assert sum(first[user] == other[user] for user in first) <= 1
    # One id that is no number makes text of all of them.
    text: list[Row] = [(str(user), str(item), 5.0, 7.0) for user, item, _, _ in rows] + [("x", "y", 5.0, 1.0)]
    data = write_data(tmp_path, text, {**{str(item): name for item, name in ITEMS.items()}, "y": "Y"})
    found = sequences(config_for(data, k_core=1))
    assert {int(user): [int(item) for item in items] for user, items in found.items()} == first


def test_numbers_are_the_same_on_every_machine() -> None:
    breaker = TieBreaker.of("hash", 3, pa.array([7, 8]), pa.array(["é", "b"]))
    numbers = breaker.numbers(np.array([0, 1, 1]), np.array([0, 0, 1]), np.zeros(3, np.int64))
    assert numbers.tolist() == [8326584694716977421, 11511180012675785357, 5032973356285961905]


@settings(max_examples=20, deadline=None)
@given(rows=few_times, split=st.sampled_from(["leave_one_out", "temporal"]), min_history=st.integers(1, 3))
def test_tied_targets_are_counted_by_split(rows: list[Row], split: str, min_history: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        data = write_data(Path(folder), rows, ITEMS)
        config = config_for(data, k_core=1, split=split, min_history=min_history)
        _, _, filtered = prepared(config)
        figures, _ = measure(filtered)
    assert figures["ties"]["targets"] == slow.tied_targets(rows, config)
    assert figures["ties"]["broken_by"] == "hash"


@pytest.mark.parametrize(("ties", "warned"), [("hash", False), ("file", False), ("item_id", True)])
def test_one_line_tells_ties_and_warns_of_ids(tmp_path: Path, ties: str, warned: bool) -> None:
    rows = [(user, item, 5.0, float(item // 2)) for user in range(3) for item in range(1, 10)]
    report = inspect_data(config_for(write_data(tmp_path, rows, ITEMS), k_core=1, ties=ties))
    assert report["ties"] == {
        "interactions": 24,
        "targets": {"train": 18, "validation": 3, "test": 3},
        "broken_by": ties,
    }
    (line,) = (line for line in describe(report).splitlines() if line.strip().startswith("tied"))
    assert "18 train, 3 validation, 3 test" in line
    assert ("release dates" in line) == warned
