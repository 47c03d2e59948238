"""What needs all buckets at once: the k-core, and a moment that parts a share of all interactions."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from rosepo.data.prepare.filtering import core_rows
from rosepo.data.prepare.log import Arrays, Log
from rosepo.data.random import example_keys
from rosepo.utils.arrays import segment_starts


@dataclass(frozen=True)
class Core:
    """What is left of a log.

    Attributes:
        items: bool [n_items], those that stay.
        before, after: interactions before and after the others were dropped.
        longest: interactions of a user that are left, at most.
    """

    items: np.ndarray
    before: int
    after: int
    longest: int


def k_core(log: Log, n_items: int, k: int) -> Core:
    """Drop items and users with fewer than `k` interactions until none is left to drop."""
    alive = np.ones(n_items, dtype=bool)
    before = -1
    rounds = itertools.count(1)
    while True:
        counts = np.zeros(n_items, dtype=np.int64)
        total = longest = 0
        for found in log.map(f"k-core, round {next(rounds)}", _count_core, alive=alive, k=k):
            counts[found["item"]] += found["count"]
            total += int(found["rows"][0])
            longest = max(longest, int(found["longest"][0]))
        before = total if before < 0 else before
        left = counts >= k
        if (left == alive).all():
            return Core(alive, before, int(counts.sum()), longest)
        alive = left


def _count_core(bucket: Arrays, alive: np.ndarray, k: int) -> Arrays:
    keep = core_rows(bucket["user"], bucket["item"], alive, k)
    item, count = np.unique(bucket["item"][keep], return_counts=True)
    lengths = np.add.reduceat(keep.astype(np.int64), segment_starts(bucket["user"]))
    return {"item": item, "count": count, "rows": np.array([len(keep)]), "longest": np.array([lengths.max()])}


def users_left(log: Log, alive: np.ndarray, k: int, ids: pa.Array, count: int) -> tuple[np.ndarray, int]:
    """bool [n_users], True for the `count` users of the k-core whose ids have the lowest hashes, and how many
    interactions they have."""
    found = list(log.map("counting users", _count_users, alive=alive, k=k))
    users, rows = (np.concatenate([part[name] for part in found]) for name in ("user", "rows"))
    order = np.argsort(example_keys(ids.take(pa.array(users)).cast(pa.string()).to_numpy(zero_copy_only=False)))
    chosen = np.zeros(len(ids), dtype=bool)
    chosen[users[order[:count]]] = True
    return chosen, int(rows[order[:count]].sum())


def _count_users(bucket: Arrays, alive: np.ndarray, k: int) -> Arrays:
    user, rows = np.unique(bucket["user"][core_rows(bucket["user"], bucket["item"], alive, k)], return_counts=True)
    return {"user": user, "rows": rows}


def time_at(log: Log, alive: np.ndarray, k: int, rank: int) -> float:
    """The time of the interaction with `rank` others before it, in the k-core: exact, without gathering the times.

    Every look counts the times in 1,024 bins and goes on inside the bin that holds the rank.
    """
    low, high = -np.inf, np.inf
    edges = np.array([low, high])
    while low < high:
        below, counts = 0, np.zeros(len(edges) - 1, dtype=np.int64)
        least, most = np.full(len(counts), np.inf), np.full(len(counts), -np.inf)
        for found in log.map("looking for the moments of the split", _count_times, alive=alive, k=k, edges=edges):
            below += int(found["below"][0])
            counts += found["counts"]
            least, most = np.minimum(least, found["least"]), np.maximum(most, found["most"])
        place = int(np.searchsorted(np.cumsum(counts) + below, rank, side="right"))
        low, high = float(least[place]), float(most[place])
        edges = np.linspace(low, high, 1025)
    return low


def _count_times(bucket: Arrays, alive: np.ndarray, k: int, edges: np.ndarray) -> Arrays:
    times = bucket["time"][core_rows(bucket["user"], bucket["item"], alive, k)]
    inside = times[(times >= edges[0]) & (times <= edges[-1])]
    bins = len(edges) - 1
    place = np.clip(np.searchsorted(edges, inside, side="right") - 1, 0, bins - 1)
    least, most = np.full(bins, np.inf), np.full(bins, -np.inf)
    np.minimum.at(least, place, inside)
    np.maximum.at(most, place, inside)
    return {
        "below": np.array([(times < edges[0]).sum()]),
        "counts": np.bincount(place, minlength=bins),
        "least": least,
        "most": most,
    }
