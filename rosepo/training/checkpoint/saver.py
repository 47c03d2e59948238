"""What a rank saves of its training and takes back, and where all ranks agree to begin."""

from __future__ import annotations

import shutil
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
    export_state,
    import_state,
    random_state,
    restore_random_state,
)
from rosepo.training.ema import WeightMean, mean_in_place
from rosepo.training.engine import Engine
from rosepo.training.metric_log import Averages, all_sum
from rosepo.training.task import Task
from rosepo.training.validation import Best
from rosepo.training.zero import WEIGHT
from rosepo.utils.files import digest

SHARE = 20
"""Checkpoints in a run where `checkpoint_every` is unset, …"""
LEAST_STEPS = 10
"""… this many steps apart at least."""


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
        kept = {found.folder for found in complete_checkpoints(out, task.origin)}
        for folder in (out / FOLDER).glob("step-*"):
            if folder not in kept:
                shutil.rmtree(folder, ignore_errors=True)
    step = int(all_sum(torch.tensor(step)))
    return _at(out, step) if step else None


def _at(out: Path, step: int) -> Checkpoint:
    return next(found for found in complete_checkpoints(out) if found.step == step)


class Saver:
    """One rank's checkpoints of a training."""

    def __init__(
        self, task: Task, engine: Engine, mean: WeightMean | None, out: Path, steps: int, resumable: bool
    ) -> None:
        self.task, self.engine, self.mean, self.out = task, engine, mean, out
        self.interval = checkpoint_interval(task.train, steps) if resumable else 0
        keep = task.train.keep_checkpoints if self.interval else 1
        self.writer = CheckpointWriter(out, task.name, dist.get_rank(), engine.world, keep)

    def due(self, step: int) -> bool:
        """Whether a checkpoint belongs after this step."""
        return self.interval > 0 and step % self.interval == 0

    def save(self, step: int, facts: dict[str, Any], averages: Averages) -> None:
        """Copy the state after a step and begin to write it; every rank must call it."""
        tensors = export_state(self.engine) | random_state(self.engine.device)
        if self.mean is not None:
            with mean_in_place(self.mean):
                means = export_state(self.engine, (WEIGHT,))
            tensors |= {f"{MEAN}/{key.partition('/')[2]}": value for key, value in means.items()}
        tensors[f"averages/{dist.get_rank()}"] = averages.parts.numpy()
        self.writer.write(step, tensors, {"origin": self.task.origin, **facts})

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
        found = dict(start.tensors(("averages",)))
        mine = range(rank, start.world, self.engine.world)
        averages.restore(sum((torch.from_numpy(found[f"averages/{one}"]) for one in mine), torch.zeros(1, 2)))
        seed = (self.task.seed * 1009 + rank) * 1_000_003 + start.step
        restore_random_state(dict(start.tensors(("rng", "cuda_rng"))), self.engine.device, seed)

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
