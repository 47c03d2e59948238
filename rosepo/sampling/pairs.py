"""The pairs stage: training examples to preference groups, by a pool of Ray Data actors.

The plan (which examples make which shard) is the data set that flows through Ray; an actor reads its shard's rows and
writes its part file itself. So no table passes through the driver or the object store, there are no read tasks that
compete with the actors for CPUs, and the output is the same for any number of actors.
"""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import ray

import rosepo
from rosepo.artifacts import Outputs, digest, of_round, read_manifest
from rosepo.config import Config
from rosepo.console import Progress, say
from rosepo.data.catalogue import Catalogue
from rosepo.errors import StageError, UserError
from rosepo.models.encoder import encode_titles
from rosepo.models.folder import CATALOGUE, read_settings
from rosepo.models.scorers import load_scorer
from rosepo.resources import stage_use_gpu
from rosepo.sampling.actors import ActorSettings, GroupsActor
from rosepo.sampling.cache import open_cache
from rosepo.sampling.draws import round_seed
from rosepo.sampling.figures import Tally
from rosepo.sampling.mixture import max_negatives
from rosepo.sampling.parts import complete, finished_parts
from rosepo.sampling.plan import SHARD_UNITS, TITLE_SHARD_UNITS, UNIT, VALIDATION, Shard, most_seen, plan_shards
from rosepo.sampling.sampler import check_columns
from rosepo.sampling.strategies import own_strategy
from rosepo.sampling.validation import EXAMPLES_FILE, validation_shard
from rosepo.sampling.vllm_engine import check_engine
from rosepo.session import work_dataset

ITEMS_FILE = "_items.parquet"
FORMAT = 2
"""To be raised with any change that gives other groups for the same settings."""
RESTARTS = 3
"""Times that a lost actor is started again, and that its shard is given to one again."""


def pairs(config: Config, inputs: Outputs, out: Path) -> dict[str, Any]:
    """Write the groups of all training examples (newest `pairs.groups_per_user` of each user) into `out`.

    Titles are sampled from `inputs.policy`, their reference log-probabilities are those of `inputs.reference`. Parts
    that an earlier run finished in `out` are kept and not made again.

    Returns:
        Counts, and by strategy the mean and histogram of epsilon, the share of pairs in which the oracle prefers the
        chosen title, and the share at the ceiling; see `Tally.figures`.

    Raises:
        UserError: more rejected titles asked for than the catalogue allows, more CPUs or GPUs than the cluster has, an
            engine that cannot run there, no training examples, or inputs that do not belong together.
        StageError: an actor failed for good, or the disk is full.
    """
    start = time.monotonic()
    settings = config.pairs
    device = "cuda" if stage_use_gpu(config, "pairs") else "cpu"
    check_engine(settings, device)
    catalogue = _check_inputs(config, inputs)
    most_units = SHARD_UNITS if settings.score else TITLE_SHARD_UNITS
    shards = plan_shards(inputs.examples, settings.groups_per_user, settings.part_groups, most_units)
    _check_negatives(config, catalogue, inputs.examples)
    tally = Tally()
    cache = open_cache(settings.reference_cache, inputs.reference, device) if settings.score else None
    actor = ActorSettings(
        pairs=settings,
        seed=round_seed(config.seed, inputs.round),
        catalogue=(inputs.examples / ITEMS_FILE).resolve(),
        policy=inputs.policy.resolve(),
        reference=inputs.reference.resolve(),
        oracle=inputs.oracle.resolve(),
        out=out.resolve(),
        embeddings=_embeddings(config, catalogue, inputs, out, tally),
        cache=None if cache is None else cache.folder,
        device=device,
        origin=origin_of(inputs),
    )
    try:
        held_out = validation_shard(settings, inputs, catalogue, out)
        run_shards(shards, actor, tally, of_round("pairs", inputs.round), held_out)
    finally:
        (out / EXAMPLES_FILE).unlink(missing_ok=True)
        if actor.embeddings is not None:
            actor.embeddings.unlink(missing_ok=True)
    tally.count_seconds("wall", time.monotonic() - start)
    held = {"validation_groups": held_out.count if held_out else 0}
    return {**tally.figures(), **held, "parts": len(shards), "actors": settings.actors}


def origin_of(inputs: Outputs) -> str:
    """Digest of what the parts of an unfinished table must have in common beside their settings: the very models and
    examples, made again under the same settings they may differ by a bit, and this version of the sampling."""
    sources = {inputs.examples, inputs.policy, inputs.reference, inputs.oracle}
    made = {path.name: read_manifest(path) for path in sources}
    return digest([FORMAT, UNIT, rosepo.__version__, made])


def run_shards(
    shards: Sequence[Shard],
    settings: ActorSettings,
    tally: Tally,
    label: str = "pairs",
    held_out: Shard | None = None,
) -> None:
    """Send every shard that is not finished through the actors, and add up the figures of all.

    Args:
        label: of the progress line.
        held_out: of validation examples, made first; its groups count in no figure.

    Raises:
        StageError: an actor failed for good; the parts that are finished stay.
    """
    everything = [*([held_out] if held_out is not None else []), *shards]
    finished = finished_parts(settings.out, everything, settings.origin)
    left = [shard for shard in everything if shard.number not in finished]
    done = [shard for shard in shards if shard.number in finished]
    total, before = sum(shard.count for shard in shards), sum(shard.count for shard in done)
    if done:
        say(f"  goes on from {len(done)} of {len(shards)} parts that an earlier run finished ({before:,} groups)")
    with Progress(label, total=total, unit="groups", before=before) as progress:
        try:
            for row in _answers(left, settings) if left else ():
                if row["shard"] != VALIDATION:
                    progress.update(row["groups"])
        except Exception as error:
            raise _own_error(error) or _lost(error, settings, shards) from error
    for number, figures in finished_parts(settings.out, everything, settings.origin).items():
        if number != VALIDATION:
            tally.add(figures)
    complete(settings.out, everything)


def _answers(shards: Sequence[Shard], settings: ActorSettings) -> Iterator[dict[str, Any]]:
    pairs = settings.pairs
    plan = work_dataset([asdict(shard) for shard in shards])
    with warnings.catch_warnings():
        # Ray 2.60 warns that extra arguments will go, and has no other way to bound restarts. By itself it restarts for
        # ever: a shard that kills whoever takes it would never end.
        warnings.simplefilter("ignore", DeprecationWarning)
        done = plan.map_batches(
            GroupsActor,
            fn_constructor_args=(settings,),
            compute=ray.data.ActorPoolStrategy(size=min(pairs.actors, len(shards))),
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=pairs.cpus_per_actor,
            num_gpus=1.0 if settings.device == "cuda" else 0.0,
            max_restarts=RESTARTS,
            max_task_retries=RESTARTS,
        )
    return iter(done.iter_rows())


def _lost(error: Exception, settings: ActorSettings, shards: Sequence[Shard]) -> StageError:
    """An actor that died again and again, in one sentence."""
    finished = len(list(settings.out.glob("part-*.parquet")))
    text = str(error)
    why = "ran out of memory" if "OutOfMemory" in text or "MemoryError" in text else "died or failed"
    reason = next((line.strip() for line in reversed(text.splitlines()) if line.strip()), type(error).__name__)
    return StageError(
        f"a sampling actor {why}, {RESTARTS + 1} times at most: {reason[:300]}; {finished} of {len(shards)} parts are "
        "finished and kept: run the same command again to go on from them (with fewer pairs.actors if memory was short)"
    )


def _embeddings(config: Config, catalogue: Catalogue, inputs: Outputs, out: Path, tally: Tally) -> Path | None:
    """Title embeddings in a file beside the parts, which actors map: an object of Ray's store would not outlive a lost
    node. None where no strategy needs them."""
    if "semantic" not in config.pairs.used:
        return None
    path = out.resolve() / "_titles.npy"
    with tally.timed("encoder"):
        vectors = encode_titles(config.pairs.encoder, catalogue, inputs.policy)
        try:
            np.save(path, vectors, allow_pickle=False)
        except OSError as error:
            path.unlink(missing_ok=True)
            raise StageError(f"title embeddings cannot be written to {out}: {error.strerror or error}") from error
    return path


def _check_inputs(config: Config, inputs: Outputs) -> Catalogue:
    """The catalogue that examples, model and oracle have in common; refuses what actors would stumble over."""
    settings = config.pairs
    catalogue = Catalogue.load(inputs.examples / ITEMS_FILE)
    if settings.score or settings.asks_policy:
        read_settings(inputs.policy)
        theirs = Catalogue.load(inputs.policy / CATALOGUE)
        if not np.array_equal(theirs.item_ids, catalogue.item_ids) or theirs.titles != catalogue.titles:
            raise UserError(f"the model in {inputs.policy} was trained on another catalogue: run `rosepo sft` again")
    if settings.score or settings.asks_oracle:
        load_scorer(inputs.oracle, catalogue)
    for name in settings.used:
        if ":" in name:
            own_strategy(name, catalogue)
    check_columns(settings, inputs.examples)
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


def _check_negatives(config: Config, catalogue: Catalogue, examples: Path) -> None:
    wanted = config.pairs.negatives
    allowed = max_negatives(catalogue, most_seen(examples, config.pairs.groups_per_user))
    if wanted > allowed:
        raise UserError(
            f"pairs.negatives={wanted} is more than the catalogue allows: {len(catalogue)} items leave "
            f"{max(allowed, 0)} outside the longest history and the target; lower it"
        )
