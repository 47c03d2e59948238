"""The pool of Ray Data actors that turns the shards of a plan into part files, and what is told of it when it fails."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from rosepo.data.example_shards import VALIDATION, Shard
from rosepo.run.ray_session import answers_of_actors
from rosepo.run.shard_files import lost_actor
from rosepo.sampling.actors import GroupsActor
from rosepo.sampling.group_files import complete, finished_parts
from rosepo.sampling.settings import ActorSettings
from rosepo.sampling.tally import Tally
from rosepo.utils.console import Progress, echo
from rosepo.utils.errors import user_error_from
from rosepo.utils.quiet import quiet_worker


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
        echo(f"  goes on from {len(done)} of {len(table)} parts that an earlier run finished ({before:,} groups)")
    with Progress(label, total=total, unit="groups", before=before) as progress:
        if left:
            progress.doing("starting actors")
        try:
            for row in _answers(left, settings) if left else ():
                if row["shard"] != VALIDATION:
                    progress.update(row["groups"])
        except Exception as error:
            parts = len(list(settings.out.glob("part-*.parquet")))
            lost = lost_actor(error, "a sampling actor", parts, len(table), "pairs.actors")
            raise user_error_from(error) or lost from error
    in_order = sorted(table, key=lambda shard: shard.number)  # of the table, whatever is made first
    for figures in finished_parts(settings.out, in_order, settings.origin).values():
        tally.add(figures)
    complete(settings.out, shards)


def counted_run(shards: Sequence[Shard], settings: ActorSettings, label: str) -> dict[str, Any]:
    """`run_shards` in a process of its own: the figures as `Tally.to_dict` gives them."""
    quiet_worker()
    tally = Tally()
    run_shards(shards, settings, tally, label)
    return tally.to_dict()


def _answers(shards: Sequence[Shard], settings: ActorSettings) -> Iterator[dict[str, Any]]:
    pairs = settings.pairs
    return answers_of_actors(
        [asdict(shard) for shard in shards],
        GroupsActor,
        settings,
        actors=pairs.actors,
        cpus_per_actor=pairs.cpus_per_actor,
        gpus_per_actor=pairs.gpus_per_actor if settings.device == "cuda" else 0,
    )
