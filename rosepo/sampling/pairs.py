"""The pairs stage: training examples to preference groups, by a pool of Ray Data actors.

The plan (which rows make which shard) is the data set that flows through Ray; an actor reads its shard's rows and
writes its part file itself. So no table passes through the driver or the object store, there are no read tasks that
compete with the actors for CPUs, and the output is the same for any number of actors.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray

from rosepo.artifacts import Outputs, of_round
from rosepo.config import Config
from rosepo.console import Progress
from rosepo.data.catalogue import Catalogue
from rosepo.errors import StageError, UserError
from rosepo.models.encoder import encode_titles
from rosepo.models.folder import CATALOGUE, read_settings
from rosepo.models.oracle import CrossFitted
from rosepo.resources import stage_use_gpu
from rosepo.sampling.actors import ActorSettings, GroupsActor
from rosepo.sampling.figures import Tally
from rosepo.sampling.mixture import max_negatives
from rosepo.sampling.plan import Shard, example_files, most_seen, plan_shards
from rosepo.sampling.strategies import own_strategy
from rosepo.session import work_dataset


def pairs(config: Config, inputs: Outputs, out: Path) -> dict[str, Any]:
    """Write the groups of all training examples (newest `pairs.groups_per_user` of each user) into `out`.

    Titles are sampled from `inputs.policy`, their reference log-probabilities are those of `inputs.reference`.

    Returns:
        Counts, and by strategy the mean and histogram of epsilon, the share of pairs in which the oracle prefers the
        chosen title, and the share at the ceiling; see `Tally.figures`.

    Raises:
        UserError: more rejected titles asked for than the catalogue allows, more CPUs or GPUs than the cluster has, no
            training examples, or inputs that do not belong together.
        StageError: an actor failed for good.
    """
    start = time.monotonic()
    settings = config.pairs
    gpus = 1.0 if stage_use_gpu(config, "pairs") else 0.0
    catalogue = _check_inputs(inputs)
    for name in settings.strategies:
        if ":" in name:
            own_strategy(name, catalogue)
    shards = plan_shards(inputs.examples, settings.groups_per_user, settings.batch_size)
    _check_negatives(config, catalogue, inputs.examples, shards)
    tally = Tally()
    embeddings: Path | None = None
    if settings.strategies.get("semantic", 0.0) > 0:
        # A file beside the parts, which actors map: an object of Ray's store would not outlive a lost node.
        embeddings = out.resolve() / "_titles.npy"
        np.save(embeddings, encode_titles(settings.encoder, catalogue, inputs.policy), allow_pickle=False)
        tally.count_seconds("encoder", time.monotonic() - start)
    actor = ActorSettings(
        pairs=settings,
        seed=config.seed,
        round=inputs.round,
        policy=inputs.policy.resolve(),
        reference=inputs.reference.resolve(),
        oracle=inputs.oracle.resolve(),
        out=out.resolve(),
        embeddings=embeddings,
        device="cuda" if gpus else "cpu",
    )
    try:
        _run(shards, actor, gpus, tally)
    finally:
        if embeddings is not None:
            embeddings.unlink()
    tally.count_seconds("wall", time.monotonic() - start)
    return {**tally.figures(), "parts": len(shards), "actors": settings.actors}


def _run(shards: Sequence[Shard], settings: ActorSettings, gpus: float, tally: Tally) -> None:
    """Send every shard through the actors and add up what they say."""
    plan = work_dataset([_plan_row(shard) for shard in shards])
    done = plan.map_batches(
        GroupsActor,
        fn_constructor_args=(settings,),
        compute=ray.data.ActorPoolStrategy(size=min(settings.pairs.actors, len(shards))),
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=settings.pairs.cpus_per_actor,
        num_gpus=gpus,
    )
    missing = {shard.number: len(shard.rows) for shard in shards}
    with Progress(of_round("pairs", settings.round), total=sum(missing.values()), unit="groups") as progress:
        try:
            for row in done.iter_rows():
                tally.add(json.loads(row["figures"]))
                progress.update(missing.pop(row["shard"]))
        except Exception as error:
            raise _own_error(error) or error from None
    if missing:
        raise StageError(f"{len(missing)} of {len(shards)} shards of groups were not written: run the stage again")


def _plan_row(shard: Shard) -> dict[str, Any]:
    return {"shard": shard.number, "path": shard.path, "rows": shard.rows}


def _check_inputs(inputs: Outputs) -> Catalogue:
    """The catalogue that examples, model and oracle have in common."""
    catalogue = Catalogue.load(inputs.examples / "_items.parquet")
    read_settings(inputs.policy)
    theirs = Catalogue.load(inputs.policy / CATALOGUE)
    if not np.array_equal(theirs.item_ids, catalogue.item_ids) or theirs.titles != catalogue.titles:
        raise UserError(f"the model in {inputs.policy} was trained on another catalogue: run `rosepo sft` again")
    CrossFitted.load(inputs.oracle, catalogue.item_ids)
    return catalogue


def _own_error(error: BaseException | None) -> UserError | StageError | None:
    """The error that an actor raised for a person to read, out of Ray's wrapping."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        for kind in (UserError, StageError):
            if isinstance(error, kind):
                return kind(str(getattr(error, "cause", None) or error))
            # What an actor raises while it starts arrives as text alone.
            told = re.findall(rf"^{kind.__module__}\.{kind.__name__}: (.+)$", str(error), flags=re.MULTILINE)
            if told:
                return kind(told[-1])
        error = getattr(error, "cause", None) or error.__cause__ or error.__context__
    return None


def _check_negatives(config: Config, catalogue: Catalogue, examples: Path, shards: Sequence[Shard]) -> None:
    wanted = config.pairs.negatives
    allowed = max_negatives(catalogue, most_seen(example_files(examples), shards))
    if wanted > allowed:
        raise UserError(
            f"pairs.negatives={wanted} is more than the catalogue allows: {len(catalogue)} items leave "
            f"{max(allowed, 0)} outside the longest history and the target; lower it"
        )
