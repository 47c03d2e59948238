"""The training loop that `sft` and `align` share, in Ray Train workers or in the calling process."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from rosepo.lm.rows.batch import Batch
from rosepo.training.checkpoint.checkpoint_files import Checkpoint, remove_checkpoints
from rosepo.training.checkpoint.optimizer_state import begin_with, save_optimizer_state
from rosepo.training.checkpoint.saver import Saver
from rosepo.training.ema import WeightMean
from rosepo.training.engine import Engine, prepare_process
from rosepo.training.feed.feed import Arrays, micro_batches
from rosepo.training.feed.schedule import Schedule
from rosepo.training.metric_log import Averages, MetricLog, all_max, all_sum, means, peak_memory
from rosepo.training.progress import PROGRESS_FILE, ProgressTeller
from rosepo.training.task import Loss, Task
from rosepo.training.validation import Best, Validator, dummy_batch, validation_steps
from rosepo.utils.console import echo
from rosepo.utils.errors import StageError

Report = Callable[[int, dict[str, float]], None]
_FLEETING = frozenset({"epoch", "learning_rate", "grad_norm", "tokens_per_second", "wait_share", "checkpoint_share"})


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
    rank, world, train = dist.get_rank(), dist.get_world_size(), task.train
    schedule = task.plan.schedule
    torch.manual_seed(task.seed * 1009 + rank)
    started = time.monotonic()
    tell = ProgressTeller(out if rank == 0 else None)
    tell.doing("loading the model")
    engine = Engine(task.build(), train, schedule.steps, schedule.micro_batches(world, train.micro_batch_size))
    mean = None if train.ema is None else WeightMean(engine, train.ema)
    run = _Run(task, engine, mean, schedule.steps, Saver(task, engine, mean, out, schedule.steps, resumable), tell)
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


def rows_of(schedule: Schedule, steps: int | None = None) -> int:
    """Rows of the first `steps` steps (None: all) together, the short last batches of epochs as they are."""
    epochs, rest = divmod(schedule.steps if steps is None else steps, schedule.steps_per_epoch)
    return epochs * schedule.n_rows + min(rest * schedule.batch_size, schedule.n_rows)


class _Run:
    """The steps of one rank."""

    def __init__(
        self, task: Task, engine: Engine, mean: WeightMean | None, steps: int, saver: Saver, tell: ProgressTeller
    ) -> None:
        self.task, self.engine, self.mean, self.steps, self.saver, self.tell = task, engine, mean, steps, saver, tell
        self.averages = Averages(("loss", "tokens", "padded", "wait", "saving", *task.metric_names))
        self.dummy = dummy_batch()
        self.validator = Validator(task, engine, mean)
        self.best = Best(task.train.best_metric, task.train.patience)
        self.every = min(task.train.log_every, steps)
        validates = task.validation or task.held_out is not None
        self.validate_at = validation_steps(task.train, steps) if validates else frozenset()
        self.done, self.tokens, self.waited = 0, 0.0, 0.0
        self.figures: dict[str, Any] = {}
        self.resumed: list[int] = []
        # Seconds of training, of checkpoints, and since the last line, before this process took over.
        self.seconds = self.saving = self.since = 0.0

    @torch.no_grad()
    def verify(self) -> None:
        """Let the task look at the module as it starts."""
        self.engine.module.eval()
        self.task.verify(lambda arrays: self.engine.forward(Batch.from_numpy(arrays).to(self.engine.device))[0].cpu())
        self.engine.module.train()

    def resume(self, start: Checkpoint) -> None:
        """Go on from a checkpoint."""
        facts = start.facts
        self.done, self.tokens, self.figures = start.step, facts["tokens"], facts["figures"]
        self.waited = facts["wait_seconds"]
        self.seconds, self.saving, self.since = facts["seconds"], facts["saving"], facts["since"]
        self.resumed = [*facts["resumed"], start.step]
        self.best.restore(facts)
        if self.task.tracker is not None:
            self.task.tracker.restore(facts["tracker"])
        self.saver.restore(start, self.averages)

    def go(self, stream: Iterator[Arrays], record: Report | None) -> dict[str, Any]:
        """All steps that are left; `record` is called on rank 0 with every line of metrics, first with an empty one as
        step 0."""
        if record is not None and self.done == 0:
            record(0, {"epoch": 0.0})
        self.tell.begin(self.done, self.steps)
        began = time.monotonic() - self.seconds
        since = time.monotonic() - self.since
        while not self.finished:
            step = self.done = self.done + 1
            done = self._step(stream, step)
            validated: dict[str, float] = {}
            if step in self.validate_at:
                started = time.monotonic()
                self.tell.doing("validating")
                validated = self.validator.validate()
                since += time.monotonic() - started
            better = self.best.update(step, validated) if validated else False
            line: dict[str, float] = {}
            if step % self.every == 0 or self.finished:
                line = self._line(step, time.monotonic() - since)
                line |= {"grad_norm": done.grad_norm, "learning_rate": done.learning_rate}
                since = time.monotonic()
            line |= validated
            if line and record is not None:
                record(step, line)
            self.tell.step(step, line)
            self.figures |= line
            if not self.finished and (better or self.saver.due(step)):
                self._checkpoint(time.monotonic() - began, time.monotonic() - since)
        return self._summary(time.monotonic() - began)

    @property
    def finished(self) -> bool:
        """Whether the step that was done is the last one."""
        return self.done >= self.steps or self.best.exhausted

    def _checkpoint(self, seconds: float, since: float) -> None:
        started = time.monotonic()
        tracker = self.task.tracker
        facts = {
            "tokens": self.tokens,
            "figures": dict(self.figures),
            "seconds": seconds,
            "saving": self.saving,
            "wait_seconds": self.waited,
            "since": since,
            "resumed": list(self.resumed),
            "tracker": tracker.state() if tracker else None,
            **self.best.facts(),
        }
        self.saver.save(self.done, facts, self.averages)
        blocked = time.monotonic() - started
        self.saving += blocked
        self.averages.add({"saving": (blocked, 1)})

    def _summary(self, seconds: float) -> dict[str, Any]:
        rows = rows_of(self.task.plan.schedule, self.done)
        kept = {name: value for name, value in self.figures.items() if name not in _FLEETING}
        if self.best.step is not None:  # the model that is saved is that one's
            kept |= (self.best.figures or {}) | {"best_step": self.best.step}
        if self.done < self.steps:
            kept["stopped_early"] = True
        if self.resumed:
            kept["resumed_from"] = self.resumed
        return kept | {
            "steps": self.done,
            "rows": rows,
            "tokens": round(self.tokens),
            "train_seconds": round(seconds, 2),
            "wait_seconds": round(self.waited, 2),
            "rows_per_second": round(rows / seconds, 2),
            "checkpoint_share": round(self.saving / seconds, 4),
            "device": self.engine.device.type,
        }

    def _step(self, stream: Iterator[Arrays], step: int) -> Any:
        waiting = time.monotonic()
        parts = [next(stream) for _ in range(self.engine.micro_batches)]
        waited = time.monotonic() - waiting
        units = sum(float(part.get("units", 0.0)) for part in parts)
        total = all_sum(torch.tensor(units, dtype=torch.float64), self.engine.device).item()
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
        if self.mean is not None:
            self.mean.follow(self.engine.done)
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
        tokens, padded, waited, saved = (parts.pop(name)[0] for name in ("tokens", "padded", "wait", "saving"))
        self.tokens += tokens
        self.waited += waited / self.engine.world
        return means(parts) | {
            "epoch": step / self.task.plan.schedule.steps_per_epoch,
            "rows_per_second": steps * self.task.train.batch_size / interval,
            "tokens_per_second": tokens / interval,
            "pad_share": 1.0 - tokens / max(padded, 1.0),
            "wait_share": min(1.0, waited / self.engine.world / interval),
            "checkpoint_share": min(1.0, saved / self.engine.world / interval),
            "memory_mib": all_max(peak_memory(self.engine.device), self.engine.device),
        }


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
