"""Rejected sampling without a model, on a synthetic log: one million users, one million items, Zipf popularity.

`strategies.core`: groups a second that an actor makes, from its shard's rows in the examples table to its part file
(popularity and uniform in equal parts, K = 1), against a Python loop over examples with a generator keyed by the
example, `bisect` over the cumulative weights and a set of what is excluded. The loop draws and nothing else.
`strategies.job`: the whole Ray Data job, its start included, against the actors' number times that rate.
`groups.10m.memory`: highest resident memory of the driver and of an actor while ten million groups are written,
against the same over the first tenth of the groups.
"""

from __future__ import annotations

import bisect
import os
import random
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.common import Row
from rosepo.config import PrepareConfig, RayConfig, parse_config
from rosepo.data.catalogue import Catalogue
from rosepo.data.example_shards import MOST_TITLE_GROUPS, Shard, plan_shards, read_shard
from rosepo.data.prepare.examples import Recipe, write_bucket
from rosepo.data.prepare.log import make_bucket
from rosepo.run.paths import RunPaths
from rosepo.run.ray_session import ray_session
from rosepo.sampling.pool import run_shards
from rosepo.sampling.settings import ActorSettings
from rosepo.sampling.tally import Tally

USERS, ITEMS, LENGTH = 1_000_000, 1_000_000, 16
QUICK_USERS = 40_000
BUCKET_USERS = 4_000
ACTORS = os.cpu_count() or 1
LOOPED = 20_000


def core(quick: bool) -> Row:
    """Row `strategies.core`."""
    examples = log(quick)
    rate = core_rate(quick)
    loop = _python_loop(examples)
    note = f"{ITEMS:,} items, {_users(quick):,} users; the loop draws only, an actor also reads and writes"
    return Row("strategies.core", rate, "groups/s", "Python loop", loop, rate / loop, note)


def job(quick: bool) -> Row:
    """Row `strategies.job`."""
    done, single = big_job(quick), core_rate(quick)
    rate = done.groups / done.seconds
    note = f"{done.groups:,} groups in {done.seconds:.1f} s, start included, on {os.cpu_count()} cores"
    return Row(
        "strategies.job", rate, "groups/s", f"{ACTORS} actors × core", ACTORS * single, rate / (ACTORS * single), note
    )


def memory(quick: bool) -> Row:
    """Row `groups.10m.memory`."""
    done = big_job(quick)
    first = done.driver_first + done.actor_first
    whole = done.driver + done.actor
    note = f"{done.groups:,} groups; driver {done.driver:.0f} MiB, actor {done.actor:.0f} MiB"
    return Row("groups.10m.memory", whole, "MiB", "first tenth of the run", first, first / whole, note)


def _users(quick: bool) -> int:
    return QUICK_USERS if quick else USERS


@lru_cache
def log(quick: bool) -> Path:
    """The examples table, in a folder that goes with the process; as `rosepo prepare` writes it."""
    root = Path(tempfile.mkdtemp(prefix="rosepo-benchmark-"))
    _remove_at_exit(root)
    folder = RunPaths(root).examples
    (folder / "_trajectories").mkdir(parents=True)
    (folder / "_sequences").mkdir()
    chance = np.cumsum(1.0 / np.arange(1, ITEMS + 1))
    chance /= chance[-1]
    counts = np.zeros(ITEMS, dtype=np.int64)
    recipe = Recipe(
        config=PrepareConfig(k_core=1),
        seed=0,
        users=pa.array(np.arange(_users(quick))),
        new_item=np.arange(ITEMS, dtype=np.int32),
        n_items=ITEMS,
        buckets=np.arange(0, _users(quick), BUCKET_USERS),
    )
    for start in recipe.buckets:
        random_ = np.random.default_rng([0, start])
        user = np.repeat(np.arange(start, start + BUCKET_USERS), LENGTH)
        # Which items are popular has nothing to do with their ids.
        item = np.searchsorted(chance, random_.random(len(user))) * 7_919 % ITEMS
        counts += np.bincount(item, minlength=ITEMS)
        time_ = np.tile(np.arange(LENGTH), BUCKET_USERS)
        rows = pa.table({"user": user, "item": item, "time": time_, "tie": item})
        write_bucket(make_bucket(rows, ITEMS), recipe, str(folder))
    titles = [f"Title {item}" for item in range(ITEMS)]
    Catalogue(np.arange(ITEMS), titles, [()] * ITEMS, counts).save(folder / "_items.parquet")
    return folder


def _remove_at_exit(folder: Path) -> None:
    import atexit

    atexit.register(shutil.rmtree, folder, ignore_errors=True)


@lru_cache
def core_rate(quick: bool) -> float:
    """Groups a second of one actor at work on its shards, by its own clock."""
    examples = log(quick)
    shards = plan(examples)[: 12 if quick else 32]
    done = _run(examples, shards, actors=1)
    return done.groups / done.busy


@lru_cache
def big_job(quick: bool) -> Done:
    """All groups of the log, by as many actors as there are cores."""
    examples = log(quick)
    return _run(examples, plan(examples), ACTORS)


def plan(examples: Path) -> list[Shard]:
    """The shards of the stage for titles alone."""
    return plan_shards(examples, None, most=MOST_TITLE_GROUPS)


@dataclass(frozen=True)
class Done:
    """A job that ran: seconds by the clock and in its actors' work, and highest resident memory in MiB."""

    groups: int
    seconds: float
    busy: float
    driver: float
    actor: float
    driver_first: float
    actor_first: float


def _run(examples: Path, shards: list[Shard], actors: int) -> Done:
    out = Path(tempfile.mkdtemp(prefix="rosepo-benchmark-groups-"))
    strategies = {"popularity": 1.0, "uniform": 1.0}
    config = parse_config(
        {"pairs": {"strategies": strategies, "score": False, "actors": actors, "groups_per_user": "all"}}
    )
    paths = RunPaths(examples.parent)
    settings = ActorSettings(
        config.pairs, config.seed, False, paths, out, None, None, "cpu", "float32", "benchmark", negatives=1
    )
    tally = Tally()
    try:
        with ray_session(RayConfig(num_cpus=max(4, actors + 1))), _watched(out, len(shards)) as peaks:
            start = time.monotonic()
            run_shards(shards, settings, tally)
            seconds = time.monotonic() - start
    finally:
        shutil.rmtree(out, ignore_errors=True)
    busy = sum(tally.seconds[name] for name in ("read", "sampling", "write"))
    return Done(tally.totals["groups"], seconds, busy, *peaks)


@contextmanager
def _watched(out: Path, parts: int) -> Iterator[list[float]]:
    """Highest resident MiB of this process and of any actor: over the whole run, and until a tenth of the parts."""
    peaks = [0.0, 0.0, 0.0, 0.0]
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.25):
            now = [_resident("self"), max(map(_resident, _actors()), default=0.0)]
            early = sum(1 for entry in os.scandir(out) if entry.name.startswith("part-")) <= parts / 10
            for place in range(2):
                peaks[place] = max(peaks[place], now[place])
                if early:
                    peaks[2 + place] = max(peaks[2 + place], now[place])

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peaks
    finally:
        over.set()
        thread.join()


def _actors() -> list[str]:
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                if b"GroupsActor" in Path(entry.path, "cmdline").read_bytes():
                    found.append(entry.name)
            except OSError:
                continue
    return found


def _resident(process: str) -> float:
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    except OSError:
        return 0.0


def _python_loop(examples: Path) -> float:
    """Groups a second of the loop that one would write first, with the same promises."""
    shard = plan_shards(examples, None)[1]
    table = read_shard(replace(shard, count=min(shard.count, LOOPED)), None)
    through = np.cumsum(Catalogue.load(examples / "_items.parquet").train_count).tolist()
    rows = list(zip(table["example_id"].to_pylist(), table["seen"].to_pylist(), table["target"].to_pylist()))
    start = time.perf_counter()
    for name, seen, target in rows:
        draw = random.Random(f"0/{name}")
        excluded = {*seen, target}
        popular = draw.random() < 0.5
        while True:
            item = bisect.bisect(through, draw.random() * through[-1]) if popular else int(draw.random() * ITEMS)
            if item not in excluded:
                break
    return len(rows) / (time.perf_counter() - start)
