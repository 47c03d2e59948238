"""The interactions as buckets of whole users: in this process, or spread over a cluster by Ray Data.

A bucket is a dict of arrays (user int32 codes, item int32 codes, time float64), sorted by user and time, and at
equal times as `prepare.ties` says. In Ray Data a bucket is one row with list columns, so that no block size can part a
user. What is computed on a log is written once, as functions of a bucket that return arrays, and run by `map`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rosepo.data.prepare.counting import counting
from rosepo.data.prepare.filtering import first_interactions
from rosepo.data.prepare.first_pass import merge_scans, positives, scan
from rosepo.data.prepare.ties import TieBreaker
from rosepo.data.readers import columns as cols
from rosepo.data.readers.interactions import Plan, interaction_schema, interaction_tables, read_interactions
from rosepo.utils.console import Progress
from rosepo.utils.errors import UserError

if TYPE_CHECKING:
    from ray.data import Dataset

Arrays = dict[str, np.ndarray]
BUCKET_ROWS = 50_000
MAX_BUCKETS = 1_000


class Log(Protocol):
    """Buckets, and a way to run a function on each."""

    def map(self, doing: str, function: Callable[..., Arrays], **arguments: Any) -> Iterator[Arrays]:
        """`function(bucket, **arguments)` of every bucket, in any order; `doing` is what the progress line says."""
        ...


class LocalLog:
    """Buckets in this process."""

    def __init__(self, buckets: list[Arrays], progress: Progress) -> None:
        self.buckets, self.progress = buckets, progress

    def map(self, doing: str, function: Callable[..., Arrays], **arguments: Any) -> Iterator[Arrays]:
        self.progress.phase(doing, len(self.buckets), "buckets")
        return self.progress.over(function(bucket, **arguments) for bucket in self.buckets)


class RayLog:
    """Buckets as rows of a materialised Ray Dataset."""

    def __init__(self, dataset: Dataset, progress: Progress) -> None:
        self.dataset, self.progress = dataset, progress

    def map(self, doing: str, function: Callable[..., Arrays], **arguments: Any) -> Iterator[Arrays]:
        self.progress.phase(doing, self.dataset.count(), "buckets")
        return self.progress.over(self._results(function, arguments))

    def _results(self, function: Callable[..., Arrays], arguments: dict[str, Any]) -> Iterator[Arrays]:
        import ray

        results: Any = self.dataset.map_batches(
            cast(Any, _run),
            batch_size=1,
            batch_format="pyarrow",
            fn_kwargs={"function": function, "ref": [ray.put(arguments)]},
        )
        for table in results.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            for place in range(table.num_rows):
                yield _unpack(table, place)


@dataclass(frozen=True, eq=False)
class Codes:
    """What interactions are encoded by.

    Attributes:
        min_rating: positive interactions are rated this at least; None takes all.
        users: all user ids, sorted; a code is a place in it.
        items: all item ids, sorted.
        buckets: first user code of every bucket.
        ties: what orders interactions of one user at one time.
    """

    min_rating: float | None
    users: pa.Array
    items: pa.Array
    buckets: np.ndarray
    ties: TieBreaker

    def encode(self, table: pa.Table) -> pa.Table:
        """Positive interactions as codes, each with the number of its bucket."""
        table = table.filter(pa.array(positives(table, self.min_rating).astype(bool)))
        user, item = cols.codes(table["user_id"], self.users), cols.codes(table["item_id"], self.items)
        return pa.table(
            {
                "bucket": (np.searchsorted(self.buckets, user, side="right") - 1).astype(np.int32),
                "user": user.astype(np.int32),
                "item": item.astype(np.int32),
                "time": table["timestamp"].to_numpy().astype(np.float64),
                "tie": self.ties.numbers(user, item, table["row"].to_numpy()),
            }
        )


def bucket_starts(counts: np.ndarray) -> np.ndarray:
    """First user code of every bucket, from rows per user [n_users]: contiguous users, about equal rows.

    A function of the data alone, so that the files do not depend on the machines that wrote them.
    """
    total = int(counts.sum())
    wanted = min(max(1, -(-total // BUCKET_ROWS)), MAX_BUCKETS)
    before = np.cumsum(counts) - counts
    cuts = np.searchsorted(before, np.arange(1, wanted) * total / wanted)
    return np.unique(np.append(0, cuts[cuts < len(counts)]))


def make_bucket(table: pa.Table, n_items: int) -> Arrays:
    """A bucket of encoded rows: sorted, of a user's repeated item the earliest alone."""
    user, item, time, tie = (table[name].to_numpy() for name in ("user", "item", "time", "tie"))
    kept = first_interactions(user, item, time, tie, n_items)
    return {"user": user[kept], "item": item[kept], "time": time[kept]}


class LocalBlocks:
    """Interactions read in this process."""

    def __init__(self, plan: Plan, progress: Progress) -> None:
        self.schema, self.progress = interaction_schema(plan), progress
        progress.phase("reading", plan.rows, "rows")
        read = (table for number, piece in plan.pieces for table in interaction_tables(plan, number, piece))
        self.tables = list(progress.over(read, len))

    def scanned(self, min_rating: float | None) -> dict[str, pa.Array]:
        """One scan of all interactions."""
        tables = self._counted("counting users and items")
        return merge_scans((scan(table, min_rating) for table in tables), self.schema)

    def log(self, codes: Codes) -> LocalLog:
        """Whole users by bucket."""
        encoded = pa.concat_tables([codes.encode(table) for table in self._counted("encoding")]).sort_by("bucket")
        edges = np.searchsorted(encoded["bucket"].to_numpy(), np.arange(len(codes.buckets) + 1))
        parts = (encoded.slice(low, high - low) for low, high in pairwise(edges.tolist()) if low < high)
        self.progress.phase("grouping by user", len(codes.buckets), "buckets")
        return LocalLog([make_bucket(part, len(codes.items)) for part in self.progress.over(parts)], self.progress)

    def _counted(self, doing: str) -> Iterator[pa.Table]:
        self.progress.phase(doing, sum(map(len, self.tables)), "rows")
        return self.progress.over(self.tables, len)


class RayBlocks:
    """Interactions read by Ray Data and kept in its object store (which spills to disk)."""

    def __init__(self, plan: Plan, progress: Progress) -> None:
        from ray.data.context import ShuffleStrategy

        self.schema, self.progress = interaction_schema(plan), progress
        with counting(progress, ("reading", plan.rows, "rows")) as counter:
            rows = read_interactions(plan, counter)
            # The sorting shuffle reuses the workers that are up; the hashing one starts its own, ten seconds on a
            # laptop.
            rows.context.shuffle_strategy = ShuffleStrategy.SORT_SHUFFLE_PULL_BASED
            self.dataset = rows.materialize()

    def scanned(self, min_rating: float | None) -> dict[str, pa.Array]:
        """One scan of all interactions.

        Raises:
            UserError: what was wrong with a file.
        """
        faults: list[str] = []
        self.progress.phase("counting users and items", self.dataset.num_blocks(), "blocks")
        merged = merge_scans(self.progress.over(self._scans(min_rating, faults)), self.schema)
        if faults:
            raise UserError(min(faults))
        return merged

    def _scans(self, min_rating: float | None, faults: list[str]) -> Iterator[dict[str, pa.Array]]:
        """The scan of each block; what was wrong with files is added to `faults`."""
        scans = self.dataset.map_batches(
            _scan_row, batch_size=None, batch_format="pyarrow", fn_kwargs={"min_rating": min_rating}
        )
        for table in scans.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            for row in range(table.num_rows):
                entry = {name: table[name][row].values for name in table.column_names}
                faults += entry.pop("fault").to_pylist()
                yield entry

    def log(self, codes: Codes) -> RayLog:
        """Whole users by bucket."""
        import ray

        ref = ray.put(codes)
        phases = (("encoding", self.dataset.count(), "rows"), ("grouping by user", len(codes.buckets), "buckets"))
        with counting(self.progress, *phases) as counter:
            encoded = self.dataset.map_batches(
                _encode_block,
                batch_size=None,
                batch_format="pyarrow",
                fn_kwargs={"ref": [ref], "counter": counter},
            )
            rows = encoded.groupby("bucket").map_groups(
                _bucket_row, batch_format="pyarrow", fn_kwargs={"n_items": len(codes.items), "counter": counter}
            )
            return RayLog(rows.materialize(), self.progress)


def _scan_row(table: pa.Table, min_rating: float | None) -> pa.Table:
    scanned = scan(table.filter(pc.is_null(table["fault"])), min_rating)
    return _pack({**scanned, "fault": table["fault"].drop_null().combine_chunks()})


def _encode_block(table: pa.Table, ref: list[Any], counter: Any) -> pa.Table:
    import ray

    encoded = ray.get(ref[0]).encode(table)
    counter.add.remote(table.num_rows)
    return encoded


def _bucket_row(table: pa.Table, n_items: int, counter: Any) -> pa.Table:
    bucket = _pack(make_bucket(table, n_items))
    counter.add.remote(1)
    return bucket


def _run(table: pa.Table, function: Callable[..., Arrays], ref: list[Any]) -> pa.Table:
    import ray

    arguments = ray.get(ref[0])
    return pa.concat_tables([_pack(function(_unpack(table, row), **arguments)) for row in range(table.num_rows)])


def _pack(arrays: Mapping[str, np.ndarray | pa.Array]) -> pa.Table:
    return pa.table({name: _one_list(pa.array(values)) for name, values in arrays.items()})


def _one_list(values: pa.Array) -> pa.Array:
    return pa.LargeListArray.from_arrays(pa.array([0, len(values)], pa.int64()), values)


def _unpack(table: pa.Table, row: int) -> Arrays:
    return {name: table[name][row].values.to_numpy(zero_copy_only=False) for name in table.column_names}
