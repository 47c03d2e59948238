"""One rank's training from the first step to the saved model, in a Ray Train worker or in the calling process."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from rosepo.run.training_progress import PROGRESS_FILE, ProgressTeller
from rosepo.training.checkpoint.checkpoint_files import Checkpoint, remove_checkpoints
from rosepo.training.checkpoint.optimizer_state import begin_with, save_optimizer_state
from rosepo.training.checkpoint.saver import Saver
from rosepo.training.ema import WeightMean
from rosepo.training.engine import Engine, prepare_process
from rosepo.training.feed.feed import micro_batches
from rosepo.training.feed.plan import Arrays
from rosepo.training.loop import Loop, Report
from rosepo.training.metric_log import MetricLog
from rosepo.training.task import Task
from rosepo.utils.console import echo


def fit_in_process(task: Task, out: Path, show: Report | None = None, gpu: bool = False) -> dict[str, Any]:
    """The same training by one rank in the calling process, without Ray Train and without going on from where another
    one stopped; for trials of a sweep."""
    prepare_process("nccl" if gpu else "gloo")
    remove_checkpoints(out)
    try:
        figures = train_rank(task, micro_batches(task.plan, 0, 1), out, show)
    finally:
        remove_checkpoints(out)
        (out / PROGRESS_FILE).unlink(missing_ok=True)
    tell_plain_rows(task.name, figures)
    return figures


def train_rank(
    task: Task,
    stream: Iterator[Arrays],
    out: Path,
    show: Report | None = None,
    start: Checkpoint | None = None,
    resumable: bool = False,
) -> dict[str, Any]:
    """One rank's training from the first step to the saved model; all ranks call it together.

    Args:
        stream: micro-batches from the step after `start` on.
        start: the checkpoint to go on from, the same on every rank.
        resumable: take checkpoints as `checkpoint_every` says. Without, the best model alone is kept in one.

    Returns:
        Figures; `plain_rows` among them, the reason, where the model could not share the prefixes of rows.
    """
    rank, train = dist.get_rank(), task.train
    schedule = task.plan.schedule
    torch.manual_seed(task.seed * 1009 + rank)
    started = time.monotonic()
    tell = ProgressTeller(out if rank == 0 else None)
    tell.doing("loading the model")
    engine = Engine(task.build(), train, schedule.steps)
    mean = None if train.ema is None else WeightMean(engine, train.ema)
    run = Loop(task, engine, mean, schedule.steps, Saver(task, engine, mean, out, schedule.steps, resumable), tell)
    run.verify()
    if task.moments is not None:
        begin_with(engine, task.moments, resumed=start is not None)
    if start is not None:
        run.resume(start)
    if rank == 0:
        with MetricLog(out, run.done) as log:
            figures = run.go(stream, lambda step, line: _record(log, show, step, line))
    else:
        figures = run.go(stream, None)
    tell.doing("saving the model")
    run.saver.finish(run.best, figures["steps"])
    weights = engine.state_dict()
    if weights is not None:
        task.save(weights, out, figures)
    del weights
    if task.keeps_moments:
        save_optimizer_state(engine, out)
    if engine.module.obstacle is not None:
        figures["plain_rows"] = engine.module.obstacle
    engine.close()
    return figures | {"seconds": round(time.monotonic() - started, 2)}


def tell_plain_rows(name: str, figures: Mapping[str, Any]) -> None:
    """Say why the model of a training could not share the prefixes of rows, where it could not: what workers say
    themselves is seen by nobody."""
    if "plain_rows" in figures:
        echo(f"  {name}: shared-prefix rows were off, one row a completion instead: {figures['plain_rows']}")


def _record(log: MetricLog, show: Report | None, step: int, line: dict[str, float]) -> None:
    log.write(step, line)
    if show is not None:
        show(step, line)
