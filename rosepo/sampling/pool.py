"""The pool of Ray Data actors that turns the shards of a plan into part files, and what is told of it when it fails."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import ray

from rosepo.console import Progress, say
from rosepo.errors import StageError, own_error
from rosepo.sampling.actors import ActorSettings, GroupsActor
from rosepo.sampling.figures import Tally
from rosepo.sampling.parts import complete, finished_parts
from rosepo.sampling.plan import VALIDATION, Shard
from rosepo.session import RESTARTS, map_by_actors, work_dataset


def run_shards(shards: Sequence[Shard], settings: ActorSettings, tally: Tally, label: str = "pairs") -> None:
    """Send every shard that is not finished through the actors, and add up the figures of all.

    Args:
        shards: one of validation examples may be among them; its groups count in no figure.
        label: of the progress line.

    Raises:
        StageError: an actor failed for good; the parts that are finished stay.
    """
    finished = finished_parts(settings.out, shards, settings.origin)
    left = [shard for shard in shards if shard.number not in finished]
    table = [shard for shard in shards if shard.number != VALIDATION]
    done = [shard for shard in table if shard.number in finished]
    total, before = sum(shard.count for shard in table), sum(shard.count for shard in done)
    if done:
        say(f"  goes on from {len(done)} of {len(table)} parts that an earlier run finished ({before:,} groups)")
    with Progress(label, total=total, unit="groups", before=before) as progress:
        try:
            for row in _answers(left, settings) if left else ():
                if row["shard"] != VALIDATION:
                    progress.update(row["groups"])
        except Exception as error:
            raise own_error(error) or _lost(error, settings, table) from error
    in_order = sorted(table, key=lambda shard: shard.number)  # of the table, whatever is made first
    for figures in finished_parts(settings.out, in_order, settings.origin).values():
        tally.add(figures)
    complete(settings.out, shards)


def counted_run(shards: Sequence[Shard], settings: ActorSettings, label: str) -> dict[str, Any]:
    """`run_shards` in a process of its own: the figures as `Tally.to_dict` gives them."""
    tally = Tally()
    run_shards(shards, settings, tally, label)
    return tally.to_dict()


def _answers(shards: Sequence[Shard], settings: ActorSettings) -> Iterator[dict[str, Any]]:
    pairs = settings.pairs
    plan = work_dataset([asdict(shard) for shard in shards])
    plan.context.execution_no_progress_timeout_s = -1  # by itself Ray 2.60 ends it where a shard takes half an hour
    done = map_by_actors(
        plan,
        GroupsActor,
        fn_constructor_args=(settings,),
        compute=ray.data.ActorPoolStrategy(size=min(pairs.actors, len(shards))),
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=pairs.cpus_per_actor,
        num_gpus=1.0 if settings.device == "cuda" else 0.0,
    )
    return iter(done.iter_rows())


def _lost(error: Exception, settings: ActorSettings, shards: Sequence[Shard]) -> StageError:
    """An actor that died again and again, in one sentence."""
    finished = len(list(settings.out.glob("part-*.parquet")))
    text = str(error)
    why = "ran out of memory" if "OutOfMemory" in text or "MemoryError" in text else "died or failed"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    # What the actor's own code raised comes before what Ray says about retries.
    told = [line for line in lines if re.match(r"(?!ray\.)[\w.]*(Error|Exception): ", line)]
    reason = (told or lines or [type(error).__name__])[-1]
    return StageError(
        f"a sampling actor {why}, {RESTARTS + 1} times at most: {reason[:300]}; {finished} of {len(shards)} parts are "
        "finished and kept: run the same command again to go on from them (with fewer pairs.actors if memory was short)"
    )
