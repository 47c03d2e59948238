"""Training data through Ray Data: every rank gets its own stream of ready batches, in the order of the schedule.

The data set that Ray Train shards is a plan, a few integers a block. An actor beside each rank looks the planned rows
up in the Parquet table and turns them into padded arrays, so tokens are put together outside the training process.
Order and number of batches follow from the schedule alone: ranks cannot fall out of step, whatever Ray schedules.
"""

from __future__ import annotations

import math
import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from rosepo.run.ray_session import map_by_actors, work_dataset
from rosepo.run.resources import FEED_CPUS
from rosepo.training.feed.parquet_rows import part_files
from rosepo.training.feed.plan import Arrays, FeedPlan
from rosepo.utils.errors import user_error_from
from rosepo.utils.quiet import quiet_worker

if TYPE_CHECKING:
    from ray.data import DataContext, DataIterator, Dataset

LEAST_STEPS, TASKS = 16, 64
"""Steps that a task of the feeding actor makes at least, and tasks of a training at most."""
BATCHES_A_BLOCK, BLOCKS_AHEAD = 32, 8
"""Of ready batches: how many are sent on together, and how much of it a stream may hold in the object store."""
LEAST_BLOCK, MOST_BLOCK = 2**17, 8 * 2**20
MOST_STREAM = 2**30
"""Bytes."""
LOOKED_INTO = 64 * 2**20
"""Bytes of a table's files, up to which its first batch is made where the training is started from."""
STORE_SHARE = 0.25
"""Of the cluster's object store that all streams may take together."""
_READY_BATCHES = 4
READ_AHEAD = 2


def micro_batches(plan: FeedPlan, rank: int, world: int, steps: range | None = None) -> Iterator[Arrays]:
    """The micro-batches of one rank, step after step, made in this process: see `RankReader.step`."""
    reader = RankReader(plan, rank, world)
    for step in steps if steps is not None else range(reader.schedule.steps):
        yield from reader.step(step)


def streamed(shard: DataIterator, start: int = 0, ahead: int = READ_AHEAD) -> Iterator[Arrays]:
    """The same micro-batches out of the rank's Ray Data shard, which fills from now on, while the model is built.

    Args:
        start: the step that the training begins with, counted from 0: a stream of another one is an error.
        ahead: micro-batches that Ray Data has to have read before it hands out the one in front of them; 0 where those
            may still have to be waited for, as in a table that grows.
    """
    ready: queue.Queue[Arrays | BaseException | None] = queue.Queue(maxsize=_READY_BATCHES)

    def fill() -> None:
        try:
            first = True
            for batch in shard.iter_batches(batch_size=1, batch_format="pyarrow", prefetch_batches=ahead):
                if first and batch["step"][0].as_py() != start:
                    raise RuntimeError(f"the data begin with step {batch['step'][0]} and training with step {start}")
                first = False
                ready.put(unpack(batch))
            ready.put(None)
        except BaseException as error:
            ready.put(user_error_from(error) or error)

    threading.Thread(target=fill, name="rosepo-feed", daemon=True).start()

    def batches() -> Iterator[Arrays]:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item

    return batches()


def plan_dataset(plan: FeedPlan, first: int = 0) -> Dataset:
    """The Ray data set to give to a trainer together with `feed_config`: blocks of (first step, last step + 1), from
    the step `first` on."""
    steps, block = plan.schedule.steps, _steps_a_task(plan)
    return work_dataset([{"start": start, "stop": min(start + block, steps)} for start in range(first, steps, block)])


def _steps_a_task(plan: FeedPlan) -> int:
    """Of tasks that outlast what the stream holds, one waits unfinished and the next unbegun: Ray Data's executor, a
    thread of the training process, rests then, and would ask again at once where all of them were done."""
    if plan.growing is not None:
        # What a task makes is sent on together: one of many steps would wait for groups that its first does not need.
        return max(1, math.ceil(plan.schedule.steps / 4096))
    return max(LEAST_STEPS, math.ceil(plan.schedule.steps / TASKS))


def block_bytes(plan: FeedPlan) -> int:
    """Bytes of the blocks that a plan's batches travel in, by the size of its first one; many for a growing table,
    whose first rows may have to be waited for, and for one that is too large to look into here: there a stream may be
    some minutes ahead."""
    if plan.growing is not None or sum(file.stat().st_size for file in part_files(plan.folder)) > LOOKED_INTO:
        return MOST_BLOCK
    first = next(micro_batches(plan, 0, 1))
    return max(LEAST_BLOCK, min(MOST_BLOCK, BATCHES_A_BLOCK * sum(array.nbytes for array in first.values())))


def stream_bytes(plan: FeedPlan, block: int, store: float, world: int) -> int:
    """Bytes that the stream of each of `world` ranks may hold in an object store of so many bytes in all.

    By itself Ray Data makes all that fits. Of small rows that is a whole training's, made as fast as the feeding actor
    can while training wants its cores.

    Args:
        block: bytes of its blocks.
    """
    # What a growing table holds comes as slowly as it is made.
    wanted = BLOCKS_AHEAD * block if plan.growing is None else MOST_STREAM
    return max(BLOCKS_AHEAD * LEAST_BLOCK, min(wanted, int(STORE_SHARE * store / world)))


def feed_config(plan: FeedPlan, first: Callable[[], int] = int) -> Any:
    """A `ray.train.DataConfig` that gives every rank its own ordered, bounded stream.

    Args:
        first: asked whenever workers have started, also after a loss: the step that their streams begin with.
    """
    import ray
    import ray.train
    from ray.data import ActorPoolStrategy, ExecutionOptions, ExecutionResources

    # Through the object store: of all the processes that Ray Train starts, only the feeding actors need to unpack it.
    kept, size = ray.put(plan), block_bytes(plan)

    class FeedConfig(ray.train.DataConfig):
        def __init__(self) -> None:
            # Not split by Train: the streams of the ranks differ by what they look up, not by blocks.
            super().__init__(datasets_to_split=[])

        def configure(
            self, datasets: Mapping[str, Dataset], world_size: int, *_: object, **__: object
        ) -> list[dict[str, DataIterator]]:
            begin = first()
            left = {name: plan_dataset(plan, begin) if begin else ds for name, ds in datasets.items()}
            store = ray.cluster_resources().get("object_store_memory", 0.0)
            limit = stream_bytes(plan, size, store, world_size)
            for dataset in left.values():
                bound(dataset.context, limit)
            return [{name: stream(ds, rank, world_size) for name, ds in left.items()} for rank in range(world_size)]

    def bound(context: DataContext, limit: int) -> None:
        context.target_max_block_size = size
        context.execution_no_progress_timeout_s = -1  # Ray 2.60 ends a stream that waits for half an hour
        context.execution_options = ExecutionOptions(
            preserve_order=True, resource_limits=ExecutionResources(object_store_memory=limit)
        )

    def stream(dataset: Dataset, rank: int, world: int) -> DataIterator:
        ready = map_by_actors(
            dataset,
            Fetcher,
            fn_constructor_args=(kept, rank, world),
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=FEED_CPUS,
            compute=ActorPoolStrategy(size=1),
        )
        return ready.iterator()

    return FeedConfig()


class RankReader:
    """Looks up and encodes what one rank takes of each step."""

    def __init__(self, plan: FeedPlan, rank: int, world: int) -> None:
        self.plan, self.rank, self.world = plan, rank, world
        self.schedule = plan.schedule
        self.table = plan.open()

    def step(self, step: int) -> list[Arrays]:
        """The micro-batches of a step, at least one: an empty one where the rank has no row. How many of the step come
        behind each is its `left`; ranks differ in their number."""
        # All ranks wait for the same rows, those of the whole step: none is long ahead of the others' collectives.
        self.table.ready(self.plan.table_rows(self.schedule.indices(step), len(self.table)))
        share = self.schedule.share(step, self.rank, self.world, self.plan.micro_batch_size)
        rows = np.concatenate(share)
        made = self.plan.encoder(self.plan.take(self.table, rows), len(share)) if len(rows) else [{}]
        for place, arrays in enumerate(made[:-1]):
            arrays["left"] = np.array(len(made) - 1 - place)
        return made


class Fetcher:
    """The feeding actor of one rank: step ranges in, one packed micro-batch a row out."""

    def __init__(self, plan: Any, rank: int, world: int) -> None:
        """`plan` is a reference to the `FeedPlan` in the object store."""
        import ray

        quiet_worker()
        self.reader = RankReader(ray.get(plan), rank, world)

    def __call__(self, block: pa.Table) -> Iterator[pa.Table]:
        for start, stop in zip(block["start"].to_pylist(), block["stop"].to_pylist()):
            for step in range(start, stop):
                for arrays in self.reader.step(step):
                    yield pack(arrays).append_column("step", pa.array([step]))


def pack(arrays: Arrays) -> pa.Table:
    """Arrays as one Arrow row: names, dtypes, shapes and the raw bytes of each. Costs a copy, no pickle."""
    flat = [np.asarray(array, order="C") for array in arrays.values()]  # ascontiguousarray would make 0-d arrays 1-d
    columns = {
        "name": pa.array([list(arrays)], pa.list_(pa.string())),
        "dtype": pa.array([[array.dtype.str for array in flat]], pa.list_(pa.string())),
        "shape": pa.array([[list(array.shape) for array in flat]], pa.list_(pa.list_(pa.int64()))),
        "data": pa.array([[array.tobytes() for array in flat]], pa.list_(pa.large_binary())),
    }
    return pa.table(columns)


def unpack(row: pa.Table) -> Arrays:
    """The arrays of one packed row, as views of it where Arrow allows."""
    names, dtypes, shapes = (row[column][0].as_py() for column in ("name", "dtype", "shape"))
    data = row["data"][0].values
    return {
        name: np.frombuffer(data[place].as_buffer(), dtype=dtype).reshape(shape)
        for place, (name, dtype, shape) in enumerate(zip(names, dtypes, shapes))
    }
