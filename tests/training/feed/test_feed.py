from __future__ import annotations

import itertools
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.exceptions import ActorDiedError

from rosepo.lm.rows.rows import group_row
from rosepo.run import ray_session
from rosepo.training.feed import feed
from rosepo.training.feed import parquet_rows as parquet
from rosepo.training.feed.feed import micro_batches, pack, unpack
from rosepo.training.feed.incremental_table import IncrementalTable
from rosepo.training.feed.micro_batching import shared_out
from rosepo.training.feed.parquet_rows import ParquetRows
from rosepo.training.feed.plan import FeedPlan
from rosepo.training.sft import sft_task
from rosepo.training.trainer import lost_worker, root_cause
from rosepo.utils.errors import UserError
from tests.training.tiny_run import tiny_config


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    folder = tmp_path_factory.mktemp("table")
    for part, size in enumerate([5, 1, 17, 9]):
        start = [0, 5, 6, 23][part]
        rows = pa.table({"row": np.arange(start, start + size), "text": [f"t{n}" for n in range(start, start + size)]})
        pq.write_table(rows, folder / f"part-{part:05d}.parquet", row_group_size=3)
    pq.write_table(pa.table({"row": [-1]}), folder / "_items.parquet")
    return folder


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 31), min_size=1, max_size=40))
def test_rows_come_back_in_the_order_asked_across_files_and_row_groups(table, asked):
    rows = ParquetRows(table)
    assert len(rows) == 32
    taken = rows.take(np.array(asked))
    assert taken["row"].to_pylist() == asked
    assert taken["text"].to_pylist() == [f"t{n}" for n in asked]


def sixteen_parts(folder, kind):
    """A table of sixteen parts, a row group of a hundred rows each, finished or growing."""
    for part in range(16):
        pq.write_table(pa.table({"row": np.arange(100 * part, 100 * part + 100)}), folder / f"part-{part:05d}.parquet")
    names = tuple(f"part-{part:05d}.parquet" for part in range(16))
    return (
        ParquetRows(folder)
        if kind == "finished"
        else IncrementalTable(folder, folder, names, (100,) * 16).open(["row"])
    )


def counted(rows, monkeypatch):
    """The row groups that are read from now on."""
    loaded, load = [], rows._load
    monkeypatch.setattr(rows, "_load", lambda group: (loaded.append(group), load(group))[1])
    return loaded


@pytest.mark.parametrize("kind", ["finished", "growing"])
def test_steps_that_take_rows_of_all_parts_read_each_once(kind, tmp_path, monkeypatch):
    rows = sixteen_parts(tmp_path, kind)
    loaded = counted(rows, monkeypatch)
    for indices in np.random.default_rng(0).permutation(1600).reshape(50, 32):
        assert rows.take(indices)["row"].to_pylist() == indices.tolist()
    assert sorted(loaded) == list(range(16))


@pytest.mark.parametrize(("groups", "kept"), [(3.5, 3), (0.1, 1)])
def test_row_groups_are_kept_up_to_their_bytes_and_one_at_least(groups, kept, tmp_path, monkeypatch):
    rows = sixteen_parts(tmp_path, "finished")
    monkeypatch.setattr(parquet, "_KEPT_BYTES", groups * 800)
    loaded = counted(rows, monkeypatch)
    for part in range(16):
        assert rows.take(np.array([100 * part + 7]))["row"].to_pylist() == [100 * part + 7]
    for part in reversed(range(16)):
        rows.take(np.array([100 * part]))
    assert loaded == [*range(16), *reversed(range(16 - kept))]


class Deadly:
    """Kills whoever encodes, but for the process that made it."""

    def __init__(self):
        self.maker = os.getpid()

    def __call__(self, rows, parts):
        if os.getpid() != self.maker:
            os.kill(os.getpid(), signal.SIGKILL)
        return [{"rows": rows["row"].to_numpy()} for _ in range(parts)]


def test_a_feeding_actor_that_dies_again_and_again_ends_the_stream_as_a_lost_process(ray_cluster, table, monkeypatch):
    monkeypatch.setattr(ray_session, "RESTARTS", 1)
    plan = FeedPlan(table, ("row",), Deadly(), n_rows=32, batch_size=8, micro_batch_size=8, seed=0, epochs=1.0)
    (shards,) = feed.feed_config(plan).configure({"train": feed.plan_dataset(plan)}, 1)
    with pytest.raises(ActorDiedError) as raised:
        list(feed.streamed(shards["train"]))
    failure = SimpleNamespace(worker_failures={0: raised.value})
    assert lost_worker(failure)
    assert root_cause("sft", 2, failure).startswith("sft: worker 0 of 2 died, as a process does that takes more memory")


def test_a_step_is_handed_out_while_the_rows_of_the_next_are_waited_for(ray_cluster, tmp_path):
    def made(block: pa.Table) -> pa.Table:
        (step,) = block["step"].to_pylist()
        end = time.monotonic() + 60
        while step and not (tmp_path / "grown").exists():
            if time.monotonic() > end:
                raise TimeoutError("nobody took the first step")
            time.sleep(0.02)
        return pack({"step": np.array(step)}).append_column("step", pa.array([step]))

    steps = ray_session.work_dataset([{"step": step} for step in range(3)])
    shard = steps.map_batches(made, batch_format="pyarrow", batch_size=None, num_cpus=0.2).iterator()
    stream = feed.streamed(shard, ahead=0)
    assert next(stream)["step"] == 0
    (tmp_path / "grown").touch()
    assert sorted(int(arrays["step"]) for arrays in stream) == [1, 2]


class Noted:
    """Writes down, a byte a step, what it has been asked for."""

    def __init__(self, path):
        self.path = path

    def __call__(self, rows, parts):
        with self.path.open("ab") as notes:
            notes.write(b".")
        return [{"rows": rows["row"].to_numpy(), "more": np.zeros(2**14, np.uint8)} for _ in range(parts)]


def test_a_stream_is_a_bounded_number_of_steps_ahead_of_training(ray_cluster, table, tmp_path):
    notes = tmp_path / "notes"
    plan = FeedPlan(table, ("row",), Noted(notes), n_rows=32, batch_size=8, micro_batch_size=8, seed=0, epochs=500.0)
    (shards,) = feed.feed_config(plan).configure({"train": feed.plan_dataset(plan)}, 1)
    stream = feed.streamed(shards["train"])
    first, size = next(stream), 0
    while size < notes.stat().st_size:  # until nothing is made any more
        size = notes.stat().st_size
        time.sleep(1)
    assert feed.BATCHES_A_BLOCK <= size <= 2 * feed.BLOCKS_AHEAD * feed.BATCHES_A_BLOCK < 2000

    expected = list(micro_batches(plan, 0, 1))
    np.testing.assert_equal([first, *stream], expected)


@pytest.mark.parametrize(("mib", "size"), [(64, 2**17), (1e-6, 2**23)])
def test_a_table_too_large_to_be_looked_into_travels_in_large_blocks(table, monkeypatch, mib, size):
    monkeypatch.setattr(feed, "LOOKED_INTO", mib * 2**20)
    plan = FeedPlan(table, ("row",), Deadly(), n_rows=32, batch_size=8, micro_batch_size=8, seed=0, epochs=1.0)
    assert feed.block_bytes(plan) == size


def test_a_folder_without_rows_is_refused(tmp_path):
    with pytest.raises(UserError, match="no rows to train on"):
        ParquetRows(tmp_path)


def test_packed_arrays_come_back_equal():
    arrays = {
        "ids": np.arange(12, dtype=np.int32).reshape(3, 4),
        "units": np.array(2.5),
        "none": np.zeros((0, 3), np.float32),
        "big": np.array([2**40]),
    }
    back = unpack(pack(arrays))
    assert list(back) == list(arrays)
    for name, array in arrays.items():
        assert back[name].dtype == array.dtype
        assert np.array_equal(back[name], array)
    assert unpack(pack({})) == {}


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 30), max_size=20), st.integers(1, 6))
def test_micro_batches_hold_every_row_once_in_order_of_length(lengths, parts):
    rows = [group_row(np.zeros(length, np.int32), [np.zeros(1, np.int32)]) for length in lengths]
    places = shared_out(rows, parts)
    assert len(places) == parts
    flat = [place for part in places for place in part]
    assert sorted(flat) == list(range(len(rows)))
    assert [lengths[place] for place in flat] == sorted(lengths)


@given(st.lists(st.integers(1, 30), min_size=12, max_size=24), st.integers(1, 4))
def test_packed_micro_batches_hold_every_row_once_and_about_as_many_tokens(lengths, parts):
    rows = [group_row(np.zeros(length, np.int32), [np.zeros(1, np.int32)]) for length in lengths]
    places = shared_out(rows, parts, pack_tokens=64)
    assert sorted(place for part in places for place in part) == list(range(len(rows)))
    tokens = [sum(lengths[place] for place in part) for part in places]
    assert max(tokens) - min(tokens) <= max(lengths)


@pytest.mark.parametrize(("world", "micro"), [(1, 8), (2, 2), (3, 1)])
def test_all_ranks_together_read_every_target_of_an_epoch_once(tiny_run, world, micro):
    plan = sft_task(tiny_config(micro_batch_size=micro), tiny_run).plan
    streams = [list(micro_batches(plan, rank, world)) for rank in range(world)]
    # A rank of fewer rows has fewer micro-batches; each step has a last one.
    steps = [sum("left" not in arrays for arrays in stream) for stream in streams]
    assert set(steps) == {plan.schedule.steps}
    for stream in streams:
        for one, other in itertools.pairwise(stream):
            assert "left" not in one or int(one["left"]) == int(other.get("left", 0)) + 1
    units = sum(float(arrays["units"]) for stream in streams for arrays in stream if arrays)
    targets = sum(pq.read_table(path)["n_targets"].to_pandas().sum() for path in plan.folder.glob("*.parquet"))
    assert units == targets


@pytest.mark.parametrize(
    ("store_gib", "world", "block_mib", "mib"),
    [(100, 8, 8, 64), (100, 8, 0.5, 4), (1, 8, 8, 32), (0.01, 8, 8, 1)],  # plenty, small blocks, shared, never nothing
)
def test_all_streams_together_leave_most_of_the_object_store(
    store_gib: float, world: int, block_mib: float, mib: int, tmp_path: Path
) -> None:
    plan = FeedPlan(tmp_path, (), Deadly(), n_rows=1, batch_size=1, micro_batch_size=1, seed=0, epochs=1.0)
    assert feed.stream_bytes(plan, int(block_mib * 2**20), store_gib * 2**30, world) == mib * 2**20
