"""The training loop that `sft` and `align` share, in Ray Train workers or in the calling process."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from rosepo.lm.rows.batch import Batch
from rosepo.run.training_progress import ProgressTeller
from rosepo.training.checkpoint.checkpoint_files import Checkpoint
from rosepo.training.checkpoint.saver import Saver
from rosepo.training.ema import WeightMean
from rosepo.training.engine import Engine
from rosepo.training.feed.plan import Arrays
from rosepo.training.metric_log import Averages, agreed, all_max, all_sum, means, peak_memory
from rosepo.training.task import Loss, Task
from rosepo.training.validation import Best, Validator, dummy_batch, validation_steps
from rosepo.utils.errors import StageError

Report = Callable[[int, dict[str, float]], None]
_FLEETING = frozenset(
    {"epoch", "learning_rate", "grad_norm", "tokens_per_second", "wait_share", "checkpoint_share", "seconds"}
)


class Loop:
    """The steps of one rank."""

    def __init__(
        self, task: Task, engine: Engine, mean: WeightMean | None, steps: int, saver: Saver, tell: ProgressTeller
    ) -> None:
        self.task, self.engine, self.mean, self.steps, self.saver, self.tell = task, engine, mean, steps, saver, tell
        self.averages = Averages(("loss", "tokens", "padded", "wait", "saving", *task.metric_names))
        self.dummy = dummy_batch()
        self.validator = Validator(task, engine, mean)
        self.best = Best(task.train.best_metric, task.train.patience, task.train.min_gain)
        self.every = min(task.train.log_every, steps)
        validates = task.validation or task.held_out is not None
        self.validate_at = validation_steps(task.train, steps) if validates else frozenset()
        self.done, self.tokens, self.waited = 0, 0.0, 0.0
        self.late = False
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
            self.late = step % self.every == 0 and self._is_late(time.monotonic() - began)
            validated: dict[str, float] = {}
            if step in self.validate_at or (self.late and self.validate_at):
                started = time.monotonic()
                self.tell.doing("validating")
                validated = self.validator.validate()
                since += time.monotonic() - started
            better = self.best.update(step, validated) if validated else False
            line: dict[str, float] = {}
            if step % self.every == 0 or self.finished:
                line = self._line(step, time.monotonic() - since)
                line |= done
                since = time.monotonic()
            line |= validated
            if line:
                line["seconds"] = time.monotonic() - began
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
        return self.done >= self.steps or self.best.exhausted or self.late

    def _is_late(self, seconds: float) -> bool:
        """Whether the time that a training may take is over on any rank: clocks differ, and all must stop together."""
        limit = self.task.train.max_seconds
        return limit is not None and all_max(float(seconds > limit)) > 0

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
        rows = self.task.plan.schedule.rows_until(self.done)
        kept = {name: value for name, value in self.figures.items() if name not in _FLEETING}
        if self.best.step is not None:  # the model that is saved is that one's
            kept |= (self.best.figures or {}) | {"best_step": self.best.step}
        if self.done < self.steps:
            kept["out_of_time" if self.late and not self.best.exhausted else "stopped_early"] = True
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

    def _step(self, stream: Iterator[Arrays], step: int) -> dict[str, float]:
        """One step's norm of the gradient and learning rate. The device is waited for once, at the end."""
        waiting = time.monotonic()
        parts = [next(stream)]
        while parts[-1].get("left"):
            parts.append(next(stream))
        self.averages.add({"wait": (time.monotonic() - waiting, 1)})
        total, most = agreed(sum(float(part.get("units", 0.0)) for part in parts), len(parts))
        # A rank that has fewer micro-batches goes on with empty ones: its collectives keep step with the others'.
        parts += [{}] * (most - len(parts))
        tracker, losses = self.task.tracker, []
        tracked = torch.zeros(tracker.SIZE if tracker else 0, dtype=torch.float64, device=self.engine.device)
        for place, part in enumerate(parts, start=1):
            loss = self._micro_batch(part)
            self.engine.accumulate(loss.total, total, last=place == most)
            losses.append(loss.total.detach())
            self.averages.add({"loss": (losses[-1], loss.units), **loss.sums})
            if loss.tracked is not None:
                tracked += loss.tracked
        done = self.engine.step()
        if self.mean is not None:
            self.mean.follow(self.engine.done)
        value, norm = torch.stack([torch.stack(losses).sum(), done.grad_norm.to(losses[0])]).tolist()
        for what, found in (("the loss", value), ("the gradient's norm", norm)):
            if not math.isfinite(found):
                raise StageError(_diverged(self.task, step, f"{what} is {found}"))
        if tracker is not None:
            tracker.update(all_sum(tracked))
        return {"grad_norm": norm, "learning_rate": done.learning_rate}

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
        parts = self.averages.collect()
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
            "memory_mib": all_max(peak_memory(self.engine.device)),
        }


def _diverged(task: Task, step: int, what: str) -> str:
    train = task.train
    hints = [f"lower {task.name}.learning_rate ({train.learning_rate:g})"]
    hints.append(f"raise {task.name}.warmup_fraction ({train.warmup_fraction:g})")
    if train.precision == "bfloat16":
        hints.append(f"use {task.name}.precision=float32")
    return f"{task.name} diverged: {what} at step {step}; {', '.join(hints[:-1])} or {hints[-1]}"
