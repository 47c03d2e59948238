"""What a rank saves of its training and takes back, and where all ranks agree to begin."""

from __future__ import annotations

import platform
import shutil
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from rosepo.config import TrainConfig
from rosepo.config.training import SAME_RESULT
from rosepo.training.checkpoint.checkpoint_files import (
    FOLDER,
    Checkpoint,
    CheckpointWriter,
    complete_checkpoints,
    newest_checkpoint,
)
from rosepo.training.checkpoint.state import (
    MEAN,
    import_state,
    own_state,
    random_state,
    restore_random_state,
)
from rosepo.training.ema import WeightMean
from rosepo.training.engine import Engine
from rosepo.training.metric_log import Averages, all_sum
from rosepo.training.task import Task
from rosepo.training.validation import Best
from rosepo.training.zero import WEIGHT, master_shares, moment_shares
from rosepo.utils.errors import StageError
from rosepo.utils.files import digest

SHARE = 20
"""Checkpoints in a run where `checkpoint_every` is unset, …"""
LEAST_STEPS = 10
"""… this many steps apart at least."""


LAG = 120.0
"""Seconds that a checkpoint of other ranks is waited for: NFS may hide a new file for 60."""


def checkpoint_interval(train: TrainConfig, steps: int) -> int:
    """Steps between two checkpoints; 0 for none."""
    if train.checkpoint_every is not None:
        return train.checkpoint_every
    return max(LEAST_STEPS, -(-steps // SHARE))


def origin_of(train: TrainConfig, *made_from: Any) -> str:
    """Digest of the settings that a training depends on and of what it is made from (JSON-able)."""
    return digest([train.model_dump(mode="json", exclude=set(SAME_RESULT)), *made_from])


def agreed_start(task: Task, out: Path) -> Checkpoint | None:
    """The newest complete checkpoint of this very training, the same on every rank; what else is there is removed.

    Every rank must call it, before any rank begins to train.
    """
    step = 0
    if dist.get_rank() == 0:
        start = newest_checkpoint(out, task.origin)
        step = 0 if start is None else start.step
        # A newer one holds no more than the best weights of that time, and will be written again.
        kept = {found.folder for found in complete_checkpoints(out, task.origin) if found.step <= step}
        for folder in (out / FOLDER).glob("step-*"):
            if folder not in kept:
                shutil.rmtree(folder, ignore_errors=True)
    step = int(all_sum(torch.tensor(step)))
    return _at(out, step) if step else None


def _at(out: Path, step: int) -> Checkpoint:
    """The checkpoint of a step that is known to be complete, waited for where this machine's view of a shared disk is
    behind.

    Raises:
        StageError: it does not show within `LAG` seconds.
    """
    end = time.monotonic() + LAG
    while True:
        for found in complete_checkpoints(out):
            if found.step == step:
                return found
        if time.monotonic() > end:
            raise StageError(
                f"the checkpoint of step {step:,} is not to be seen whole in {out / FOLDER} on {platform.node()} after "
                f"{LAG:g} s: see to it that all nodes share --out, and run the same command again"
            )
        time.sleep(min(1.0, LAG))


class Saver:
    """One rank's checkpoints of a training."""

    def __init__(
        self, task: Task, engine: Engine, mean: WeightMean | None, out: Path, steps: int, resumable: bool
    ) -> None:
        self.task, self.engine, self.mean, self.out = task, engine, mean, out
        self.interval = checkpoint_interval(task.train, steps) if resumable else 0
        keep = task.train.keep_checkpoints if self.interval else 1
        self.writer = CheckpointWriter(out, task.name, dist.get_rank(), engine.world, keep)
        self.borrowed = False

    def due(self, step: int) -> bool:
        """Whether a checkpoint belongs after this step."""
        return self.interval > 0 and step % self.interval == 0

    def save(self, step: int, facts: dict[str, Any], averages: Averages) -> None:
        """Begin to write the state after a step, from where it lies: it may change when `settle` has been called.

        Between two checkpoints that are due it is the weights of the best validation that are kept: the optimizer's
        state is with them where the next training will begin with it.
        """
        whole = self.due(step) or self.task.keeps_moments
        shares = {WEIGHT: master_shares(self.engine)} | (moment_shares(self.engine) if whole else {})
        if self.mean is not None:
            shares[MEAN] = self.mean.shares
        pieces, places = own_state(self.engine, shares)
        pieces |= random_state(self.engine.device) | {f"averages/{dist.get_rank()}": averages.parts.numpy()}
        self.writer.write(step, pieces, places, {"origin": self.task.origin, "whole": whole, **facts})
        # What came from a GPU is a copy, which no step changes.
        self.borrowed = any(share.device.type == "cpu" for laid_out in shares.values() for share in laid_out)

    def settle(self) -> float:
        """Wait until what is being written has been read, before a step changes it: seconds that it took."""
        started = time.monotonic()
        if self.borrowed:
            self.writer.settle()
        return time.monotonic() - started

    def restore(self, start: Checkpoint, averages: Averages) -> None:
        """Put a checkpoint into the engine, the random generators and the running figures; every rank must call it.

        Where the number of ranks has changed, rank r takes over what the ranks r, r + world, … had counted, and ranks
        that are new begin their masks of dropout anew.
        """
        if self.mean is not None:
            import_state(self.engine, start, weights_only=True, weight=MEAN)
            self.mean.begin()
        import_state(self.engine, start)
        rank = dist.get_rank()
        mine = range(rank, start.world, self.engine.world)
        counted = (torch.from_numpy(start.tensors(one, ("averages",))[f"averages/{one}"]) for one in mine)
        averages.restore(sum(counted, torch.zeros(1, 2)))
        seed = (self.task.seed * 1009 + rank) * 1_000_003 + start.step
        found = start.tensors(rank, ("rng", "cuda_rng")) if rank < start.world else {}
        restore_random_state(found, self.engine.device, seed)

    def finish(self, best: Best, last: int) -> None:
        """Wait for what is being written, and put the weights that are kept into the engine where they are not there:
        the running mean where there is one, that of the best validation where it was not the last."""
        self.writer.wait()
        mean = self.mean
        if best.step is None or best.step == last:
            if mean is not None:
                mean.swap()
            return
        dist.barrier()  # every rank has written its share
        # What the next training would begin with belongs to the same step as the weights.
        checkpoint, weight = _at(self.out, best.step), WEIGHT if mean is None else MEAN
        import_state(self.engine, checkpoint, weights_only=not self.task.keeps_moments, weight=weight)
