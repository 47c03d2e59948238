"""The training loop that `sft` and `align` share, in Ray Train workers or in the calling process."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from rosepo.errors import StageError
from rosepo.training.batch import Batch
from rosepo.training.collate import collate_numpy
from rosepo.training.engine import Engine, prepare_process
from rosepo.training.feed import Arrays, micro_batches
from rosepo.training.metrics import Averages, MetricLog, all_sum, means
from rosepo.training.rows import group_row
from rosepo.training.schedule import Schedule
from rosepo.training.task import Loss, Task

Report = Callable[[int, dict[str, float]], None]
_FLEETING = frozenset({"epoch", "learning_rate", "grad_norm", "tokens_per_second", "wait_share"})
VALIDATIONS = 4
"""Looks at validation in a run, the last one after the last step."""


def fit_in_process(task: Task, out: Path, show: Report | None = None, gpu: bool = False) -> dict[str, Any]:
    """The same training by one rank in the calling process, without Ray Train; for trials of a sweep."""
    prepare_process("nccl" if gpu else "gloo")
    return train_rank(task, micro_batches(task.plan, 0, 1), out, show)


def train_rank(task: Task, stream: Iterator[Arrays], out: Path, show: Report | None = None) -> dict[str, Any]:
    """One rank's training from the first step to the saved model; all ranks call it together."""
    rank, world, train = dist.get_rank(), dist.get_world_size(), task.train
    schedule = task.plan.schedule
    torch.manual_seed(task.seed * 1009 + rank)
    started = time.monotonic()
    engine = Engine(task.build(), train, schedule.steps, schedule.micro_batches(world, train.micro_batch_size))
    run = _Run(task, engine, schedule.steps)
    run.verify()
    if rank == 0:
        with MetricLog(out) as log:
            figures = run.go(stream, lambda step, line: _record(log, show, step, line))
    else:
        figures = run.go(stream, None)
    weights = engine.state_dict()
    if weights is not None:
        task.save(weights, out, figures)
    engine.close()
    return figures | {"seconds": round(time.monotonic() - started, 2)}


def rows_of(schedule: Schedule) -> int:
    """Rows of all steps together, the short last batches of epochs as they are."""
    epochs, rest = divmod(schedule.steps, schedule.steps_per_epoch)
    return epochs * schedule.n_rows + min(rest * schedule.batch_size, schedule.n_rows)


class _Run:
    """The steps of one rank."""

    def __init__(self, task: Task, engine: Engine, steps: int) -> None:
        self.task, self.engine, self.steps = task, engine, steps
        self.averages = Averages(("loss", "tokens", "padded", "wait", *task.metric_names))
        self.dummy = _dummy()
        self.tokens = self.waited = 0.0
        self.every = min(task.train.log_every, steps)
        self.looks = {math.ceil(steps * look / VALIDATIONS) for look in range(1, VALIDATIONS + 1)}

    @torch.no_grad()
    def verify(self) -> None:
        """Let the task look at the module as it starts."""
        self.engine.module.eval()
        self.task.verify(lambda arrays: self.engine.forward(Batch.from_numpy(arrays).to(self.engine.device))[0].cpu())
        self.engine.module.train()

    def go(self, stream: Iterator[Arrays], record: Report | None) -> dict[str, Any]:
        """All steps; `record` is called on rank 0 with every line of metrics, first with an empty one as step 0."""
        if record is not None:
            record(0, {"epoch": 0.0})
        figures: dict[str, Any] = {}
        began = since = time.monotonic()
        for step in range(1, self.steps + 1):
            done = self._step(stream, step)
            line: dict[str, float] = {}
            if step % self.every == 0 or step == self.steps:
                line = self._line(step, time.monotonic() - since)
                line |= {"grad_norm": done.grad_norm, "learning_rate": done.learning_rate}
                since = time.monotonic()
            if self.task.validation and step in self.looks:
                started = time.monotonic()
                line["validation_loss"] = self._validate()
                since += time.monotonic() - started
            if line and record is not None:
                record(step, line)
            figures |= line
        seconds = time.monotonic() - began
        rows = rows_of(self.task.plan.schedule)
        kept = {name: value for name, value in figures.items() if name not in _FLEETING}
        return kept | {
            "steps": self.steps,
            "rows": rows,
            "tokens": round(self.tokens),
            "train_seconds": round(seconds, 2),
            "wait_seconds": round(self.waited, 2),
            "rows_per_second": round(rows / seconds, 2),
        }

    def _step(self, stream: Iterator[Arrays], step: int) -> Any:
        waiting = time.monotonic()
        parts = [next(stream) for _ in range(self.engine.micro_batches)]
        waited = time.monotonic() - waiting
        units = sum(float(part["units"]) for part in parts if part)
        total = float(all_sum(torch.tensor(units, dtype=torch.float64), self.engine.device))
        tracker = self.task.tracker
        tracked = torch.zeros(tracker.SIZE if tracker else 0, dtype=torch.float64)
        for part in parts:
            loss = self._micro_batch(part)
            value = float(loss.total.detach())
            if not math.isfinite(value):
                raise StageError(_diverged(self.task, step, f"the loss is {value}"))
            self.engine.accumulate(loss.total, total)
            self.averages.add({"loss": (value, loss.units), **loss.sums})
            if loss.tracked is not None:
                tracked += loss.tracked.cpu()
        self.averages.add({"wait": (waited, 1)})
        done = self.engine.step()
        if not math.isfinite(done.grad_norm):
            raise StageError(_diverged(self.task, step, f"the gradient's norm is {done.grad_norm}"))
        if tracker is not None:
            tracker.update(all_sum(tracked, self.engine.device))
        return done

    def _micro_batch(self, arrays: Arrays) -> Loss:
        batch = Batch.from_numpy(arrays or self.dummy)
        logps, counts = self.engine.forward(batch.to(self.engine.device))
        if not arrays:
            # This rank has no row here, but its collectives must keep step with the other ranks'.
            return Loss(logps.sum() * 0.0, 0.0, {})
        self.averages.add({"tokens": (batch.n_tokens, 1), "padded": (batch.input_ids.numel(), 1)})
        return self.task.loss(logps, counts, arrays)

    def _line(self, step: int, interval: float) -> dict[str, float]:
        """Figures since the last line, over all ranks."""
        steps = step % self.every or self.every
        parts = self.averages.collect(self.engine.device)
        tokens, padded, waited = (parts.pop(name)[0] for name in ("tokens", "padded", "wait"))
        self.tokens += tokens
        self.waited += waited / self.engine.world
        return means(parts) | {
            "epoch": step / self.task.plan.schedule.steps_per_epoch,
            "rows_per_second": steps * self.task.train.batch_size / interval,
            "tokens_per_second": tokens / interval,
            "pad_share": 1.0 - tokens / max(padded, 1.0),
            "wait_share": min(1.0, waited / self.engine.world / interval),
        }

    @torch.no_grad()
    def _validate(self) -> float:
        """Mean loss over the validation units, dropout off, the micro-batches shared by the ranks."""
        batches, world = self.task.validation, self.engine.world
        sums = Averages(("loss",))
        self.engine.module.eval()
        for start in range(0, len(batches), world):
            mine = start + dist.get_rank()
            arrays = batches[mine] if mine < len(batches) else {}
            batch = Batch.from_numpy(arrays or self.dummy).to(self.engine.device)
            logps, counts = self.engine.forward(batch)
            if arrays:
                loss = self.task.loss(logps, counts, arrays)
                sums.add({"loss": (loss.total, loss.units)})
        self.engine.module.train()
        return means(sums.collect(self.engine.device))["loss"]


def _dummy() -> Arrays:
    import numpy as np

    token = np.zeros(1, dtype=np.int32)
    return collate_numpy([group_row(token, [token])])


def _record(log: MetricLog, show: Report | None, step: int, line: dict[str, float]) -> None:
    log.write(step, line)
    if show is not None:
        show(step, line)


def _diverged(task: Task, step: int, what: str) -> str:
    train = task.train
    hints = [f"lower {task.name}.learning_rate ({train.learning_rate:g})"]
    hints.append(f"raise {task.name}.warmup_fraction ({train.warmup_fraction:g})")
    if train.precision == "bfloat16":
        hints.append(f"use {task.name}.precision=float32")
    return f"{task.name} diverged: {what} at step {step}; {', '.join(hints[:-1])} or {hints[-1]}"
