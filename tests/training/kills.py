"""Trainings that are killed in the middle and gone on with, rank by rank."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import torch.distributed as dist

from rosepo.config import Config
from rosepo.run.paths import RunPaths
from rosepo.training.checkpoint.saver import agreed_start
from rosepo.training.engine import prepare_process
from rosepo.training.feed.feed import micro_batches
from rosepo.training.feed.plan import Arrays
from rosepo.training.rank import train_rank
from rosepo.training.sft import SftTask, sft_task
from tests.training.tiny_run import tiny_config


def config_of(zero_stage: int, lora: Path | None = None, **train: object) -> Config:
    scratch = {"hidden_size": 16, "layers": 1, "heads": 2, "intermediate_size": 32, "vocab_size": 300}
    model = {"scratch": {**scratch, "dropout": 0.1}, "max_length": 128}
    if lora is not None:
        model = {"path": str(lora), "max_length": 128, "lora": {"rank": 2, "dropout": 0.1}}
    settings = {"micro_batch_size": 2, "epochs": 2, "checkpoint_every": 3, "log_every": 2, "validate_every": 5}
    return tiny_config(model=model, zero_stage=zero_stage, **settings | train)


def resumed(task: SftTask, out: Path, killed: int | None = None) -> None:
    """One rank's training from the newest checkpoint on; `killed`: the process kills itself before this micro-batch."""
    prepare_process()
    start = agreed_start(task, out)
    step = 0 if start is None else start.step
    stream = micro_batches(task.plan, dist.get_rank(), dist.get_world_size(), range(step, task.plan.schedule.steps))
    train_rank(task, deadly(stream, killed), out, start=start, resumable=True)


def deadly(stream: Iterator[Arrays], killed: int | None) -> Iterator[Arrays]:
    for number, arrays in enumerate(stream):
        if number == killed:
            os.kill(os.getpid(), signal.SIGKILL)
        yield arrays


def train_rank_of(rank: int, run: str, config: Config, out: str, killed: int | None) -> None:
    """One rank; the last one is killed where that is asked for."""
    resumed(sft_task(config, RunPaths(Path(run))), Path(out), killed if rank == 1 else None)
