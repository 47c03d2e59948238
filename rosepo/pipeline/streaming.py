"""Pairs and align at the same time (`pairs.stream`): groups are trained on while the actors still make others.

Training runs in the calling thread, as it does alone. The pairs stage, from its partial folder to its manifest, runs in
a thread beside it; its pool of actors belongs to a process of its own, so that it can be ended at any moment. The two
meet in the part files alone: an actor renames a part into place, and the feeding actors wait for those they need.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rosepo.config import Config
from rosepo.data.example_shards import VALIDATION, VALIDATION_FILE, Shard
from rosepo.run.paths import RunPaths
from rosepo.run.ray_session import RESTARTS
from rosepo.run.stages import StageFunction
from rosepo.sampling.group_files import finished_parts, part_path
from rosepo.sampling.pairs import Sampling, plan_sampling
from rosepo.sampling.pool import counted_run
from rosepo.sampling.settings import ActorSettings
from rosepo.sampling.tally import Tally
from rosepo.training.feed.incremental_table import MAKING, IncrementalTable
from rosepo.utils.console import Progress, duration, echo
from rosepo.utils.errors import StageError, user_error_from

_LOOK = 0.5
"""Seconds between two looks at the parts, for the progress line."""

_END = 30.0
"""Seconds for the thread to end when it is told to; its process ends with Ray's session in any case."""

SamplingStage = Callable[[StageFunction], None]
"""Does all that belongs to the pairs stage, from its partial folder to its manifest, with this function in place of its
own."""


def align_streamed(config: Config, paths: RunPaths, out: Path, folder: Path, pairs: SamplingStage) -> dict[str, Any]:
    """The align stage, while `pairs` makes its groups in `folder`, which goes to `paths.groups` when all are there.

    Returns:
        The figures of `align`, and `streamed`.

    Raises:
        UserError, StageError: of either stage.
    """
    from rosepo.training.align import align

    maker = Production(plan_sampling(config, paths), folder, pairs)
    try:
        figures = align(config, paths, out, maker=maker)
    except BaseException as error:
        maker.stop()
        # What training says of groups that do not come is no more than that.
        if maker.error not in (None, error) and isinstance(error, Exception):
            raise maker.error from error
        raise
    echo(f"  training waited {duration(figures['wait_seconds'])} of {duration(figures['train_seconds'])} for data")
    return figures | {"streamed": True}


class Production:
    """The pairs stage in a thread; see `incremental_table.Maker`."""

    def __init__(self, sampling: Sampling, folder: Path, pairs: SamplingStage) -> None:
        """
        Args:
            folder: where `pairs` will have its function write.
        """
        shards = sampling.shards
        names, rows = tuple(part_path(folder, shard).name for shard in shards), tuple(shard.count for shard in shards)
        self.table = IncrementalTable(folder, sampling.paths.groups, names, rows, sampling.held_out is not None)
        self.error: BaseException | None = None
        self._sampling, self._pairs = sampling, pairs
        self._order: Sequence[int] = ()
        self._begun, self._stopped = threading.Event(), False
        self._guard = threading.Lock()
        self._pool: ray.ObjectRef[Any] | None = None
        self._made, self._told = 0, False
        self._thread = threading.Thread(target=self._run, name="rosepo-pairs", daemon=True)

    def start(self, order: Sequence[int]) -> None:
        """Begin; returns when readers may wait for parts.

        Raises:
            UserError, StageError: the stage ended before.
        """
        self._order = order
        self._thread.start()
        self._begun.wait()
        if self.error is not None:
            raise self.error

    def told(self) -> str:
        self._told = True
        total = sum(self.table.rows)
        return f"{self._sampling.label} {self._made:,}/{total:,} groups" if self._thread.is_alive() else ""

    def finish(self) -> None:
        self._told = False  # training's line moves no more
        self._thread.join()
        if self.error is not None:
            raise self.error

    def stop(self) -> None:
        """End the actors and the thread; parts that are finished stay."""
        with self._guard:
            self._stopped = True
            if self._pool is not None:
                # The actors belong to the process of this task, and end with it.
                ray.cancel(self._pool, force=True)
        if self._thread.ident is not None:
            self._thread.join(timeout=_END)

    def _run(self) -> None:
        try:
            self._pairs(self._stage)
        except BaseException as error:
            self._keep(error)
        finally:
            self._begun.set()

    def _keep(self, error: BaseException) -> None:
        if self.error is None and not self._stopped:
            self.error = user_error_from(error) or error

    def _stage(self, config: Config, paths: RunPaths, out: Path) -> dict[str, Any]:
        """The function of the pairs stage."""
        if out != self.table.folder:
            raise StageError(f"groups are written to {out}, and read from {self.table.folder}")
        sampling = self._sampling
        # No part of other models is left for readers.
        done = finished_parts(out, [*sampling.held_out_shards(out), *sampling.shards], sampling.origin)
        if VALIDATION not in done:
            (out / VALIDATION_FILE).unlink(missing_ok=True)
        done.pop(VALIDATION, None)
        self._made = sum(shard.count for shard in sampling.shards if shard.number in done)
        if done:
            echo(f"  {sampling.label} goes on from {len(done)} of {len(sampling.shards)} parts ({self._made:,} groups)")
        (out / MAKING).touch()
        try:
            self._begun.set()
            return sampling.run(out, self._shards) | {"streamed": True}
        except BaseException as error:
            self._keep(error)  # before readers see that nobody makes parts any more
            raise
        finally:
            (out / MAKING).unlink(missing_ok=True)

    def _shards(self, shards: Sequence[Shard], actor: ActorSettings, tally: Tally, label: str) -> None:
        """`run_shards` in a process of its own, in the order that training wants."""
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        # Another try goes on from the parts that are finished; one that is cancelled gets none.
        pool = ray.remote(counted_run).options(num_cpus=0, max_retries=RESTARTS, scheduling_strategy=here)
        with self._guard:
            if self._stopped:
                raise StageError("stopped")
            place = {number: place for place, number in enumerate(self._order)}
            # What is no part of training's table comes first.
            ordered = sorted(shards, key=lambda shard: place.get(shard.number, -1))
            self._pool = pool.remote(ordered, actor, label)
        with Progress(label, sum(self.table.rows), "groups", before=self._made) as progress:
            left = [shard for shard in shards if shard.number in place]
            while not ray.wait([self._pool], timeout=_LOOK)[0]:
                left = [shard for shard in left if not part_path(actor.out, shard).exists()]
                self._made = sum(self.table.rows) - sum(shard.count for shard in left)
                if self._made > progress.done and not self._told:  # training has no line yet that tells both
                    progress.update(self._made - progress.done)
            tally.add(_figures_of(self._pool))
            progress.done = sum(self.table.rows)


def _figures_of(pool: ray.ObjectRef[Any]) -> dict[str, Any]:
    """What the process of a pool returned.

    Raises:
        UserError, StageError: what the pool raised, or that the process was lost.
    """
    try:
        figures: dict[str, Any] = ray.get(pool)
    except Exception as error:
        raise user_error_from(error) or lost_process(error) from error
    return figures


def lost_process(error: Exception) -> StageError:
    """What to say of a sampling process that died or failed otherwise than by an error of ours."""
    cause = getattr(error, "cause", None) or error
    told = str(cause).strip().splitlines() or ["no message"]
    return StageError(
        f"the sampling process was lost ({type(cause).__name__}: {told[0][:200]}): run the same command again; "
        "finished parts are kept"
    )
