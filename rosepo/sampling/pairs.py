"""The pairs stage: training examples to preference groups, by a pool of Ray Data actors.

The plan (which examples make which shard) is the data set that flows through Ray; an actor reads its shard's rows and
writes its part file itself. So no table passes through the driver or the object store, there are no read tasks that
compete with the actors for CPUs, and the output is the same for any number of actors.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

import rosepo
from rosepo.config import Config
from rosepo.data.catalogue import ITEMS_FILE, Catalogue, made_for
from rosepo.data.example_shards import VALIDATION, Shard, check_columns, most_seen, shards_of
from rosepo.data.random import round_seed
from rosepo.lm.model.model_folder import check_catalogue
from rosepo.lm.titles.title_embeddings import encode_titles
from rosepo.oracle.load import load_scorer
from rosepo.run.manifest import read_manifest
from rosepo.run.paths import RunPaths, of_round
from rosepo.run.resources import stage_use_gpu
from rosepo.sampling.pool import run_shards
from rosepo.sampling.reference_cache import ReferenceCache, open_cache
from rosepo.sampling.settings import ActorSettings
from rosepo.sampling.strategies.mixture import check_negatives, max_negatives
from rosepo.sampling.tally import Tally
from rosepo.sampling.validation_groups import EXAMPLES_FILE, validation_examples, written
from rosepo.utils.errors import StageError, UserError
from rosepo.utils.files import digest

MOST_WHOLE = 1 << 16
"""Titles of a catalogue whose whole distribution a group can keep: 128 KiB of it."""


def pairs(config: Config, paths: RunPaths, out: Path) -> dict[str, Any]:
    """Write the groups of all training examples (newest `pairs.groups_per_user` of each user) into `out`.

    Titles are sampled from `paths.policy`, their reference log-probabilities are those of `paths.reference`. Parts
    that an earlier run finished in `out` are kept and not made again.

    Returns:
        Counts, and by strategy the mean and histogram of epsilon, the share of pairs in which the oracle prefers the
        chosen title, and the share at the ceiling; see `Tally.figures`.

    Raises:
        UserError: see `plan_sampling`.
        StageError: an actor failed for good, or the disk is full.
    """
    return plan_sampling(config, paths).run(out)


@dataclass(frozen=True)
class Sampling:
    """The pairs stage, planned and checked.

    Attributes:
        shards: of the whole table, by number.
        negatives: K, rejected titles a group.
        device: `cpu` or `cuda`, of the actors.
        precision: of their language models.
        cache: of reference log-probabilities, None keeps none.
        held_out: validation examples that become groups beside the table; None where there are none.
    """

    config: Config
    paths: RunPaths
    catalogue: Catalogue
    shards: Sequence[Shard]
    negatives: int
    device: str
    precision: str
    cache: ReferenceCache | None
    held_out: pa.Table | None

    @property
    def label(self) -> str:
        """The stage's name in its round."""
        return of_round("pairs", self.paths.round)

    @property
    def origin(self) -> str:
        """Digest of what the parts of an unfinished table must have in common beside their settings: the very models
        and examples, made again under the same settings they may differ by a bit, and this version of rosepo."""
        sources = {self.paths.examples, self.paths.policy, self.paths.reference, self.paths.oracle}
        return digest([rosepo.__version__, {path.name: read_manifest(path) for path in sources}])

    def run(self, out: Path, run: Callable[..., None] = run_shards) -> dict[str, Any]:
        """Write the table into `out`; `run` takes what `run_shards` takes. Returns and raises as `pairs` does."""
        start, tally = time.monotonic(), Tally()
        with contextlib.ExitStack() as stack:
            shards = [*self.held_out_shards(out), *self.shards]
            if self.held_out is not None:
                stack.enter_context(written(self.held_out, out))
            embeddings = _embeddings(self.config, self.catalogue, self.paths, out, tally)
            if embeddings is not None:
                stack.callback(embeddings.unlink, missing_ok=True)
            run(shards, self._actor(out, embeddings), tally, self.label)
        tally.count_seconds("wall", time.monotonic() - start)
        held = {"negatives": self.negatives, "validation_groups": 0 if self.held_out is None else len(self.held_out)}
        return {**tally.figures(), **held, "parts": len(self.shards), "actors": self.config.pairs.actors}

    def held_out_shards(self, out: Path) -> list[Shard]:
        """The shard of validation examples, if there are any, of a table that is written into `out`."""
        if self.held_out is None:
            return []
        return [Shard(VALIDATION, str(out / EXAMPLES_FILE), 0, len(self.held_out))]

    def _actor(self, out: Path, embeddings: Path | None) -> ActorSettings:
        return ActorSettings(
            pairs=self.config.pairs,
            seed=round_seed(self.config.seed, self.paths.round),
            candidates=self.config.reads_candidates,
            paths=self.paths,
            out=out,
            embeddings=embeddings,
            cache=self.cache,
            device=self.device,
            precision=self.precision,
            origin=self.origin,
            negatives=self.negatives,
        )


def plan_sampling(config: Config, paths: RunPaths) -> Sampling:
    """What the pairs stage will do; nothing is written.

    Raises:
        UserError: more rejected titles asked for than the catalogue allows, more CPUs or GPUs than the cluster has, an
            engine that cannot run there, no training examples, or inputs that do not belong together.
    """
    settings = config.pairs
    device = "cuda" if stage_use_gpu(config, "pairs") else "cpu"
    catalogue = _check_inputs(config, paths)
    if settings.oracle_whole and len(catalogue) > MOST_WHOLE:
        raise UserError(
            f"pairs.oracle_whole=true keeps a number for every title in every group, which {len(catalogue):,} titles "
            f"are too many for (at most {MOST_WHOLE:,}): leave it out, and titles that are drawn stand for all"
        )
    shards = shards_of(settings, paths.examples)
    allowed = max_negatives(catalogue, most_seen(paths.examples, settings.newest))
    check_negatives(settings.negatives, allowed, len(catalogue))
    negatives = config.negatives(allowed)
    precision = config.precision("pairs", device == "cuda")
    by = f"{precision} by vllm" if settings.served_reference else precision
    cache = open_cache(settings.reference_cache, paths.reference, by) if settings.score else None
    held_out = validation_examples(config, paths, catalogue, negatives)
    return Sampling(config, paths, catalogue, shards, negatives, device, precision, cache, held_out)


def _embeddings(config: Config, catalogue: Catalogue, paths: RunPaths, out: Path, tally: Tally) -> Path | None:
    """Title embeddings in a file beside the parts, which actors map: an object of Ray's store would not outlive a lost
    node. None where no strategy needs them."""
    if not config.pairs.asking("embeddings"):
        return None
    path = out / "_titles.npy"
    with tally.timed("encoder"):
        vectors = encode_titles(config.pairs.encoder, catalogue, paths.policy)
        try:
            np.save(path, vectors, allow_pickle=False)
        except OSError as error:
            path.unlink(missing_ok=True)
            raise StageError(f"title embeddings cannot be written to {out}: {error.strerror or error}") from error
    return path


def _check_inputs(config: Config, paths: RunPaths) -> Catalogue:
    """The catalogue that examples, model and oracle have in common; refuses what actors would stumble over."""
    settings = config.pairs
    catalogue = Catalogue.load(paths.examples / ITEMS_FILE)
    if settings.score or settings.asks_policy:
        check_catalogue(paths.policy, catalogue, "run `rosepo sft` again")
    if settings.score or settings.asks_oracle:
        load_scorer(paths.oracle, catalogue)
    for name in settings.used:
        if ":" in name:
            made_for(catalogue, name, "pairs.strategies", "strategy")
    check_columns(paths.examples, config.reads_candidates)
    return catalogue
