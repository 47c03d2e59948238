"""Ray Train around the training loop: workers, data, progress, failures told in a sentence, and Ctrl-C."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rosepo.run.signals import handlers_kept
from rosepo.run.training_progress import TrainingProgress
from rosepo.training.checkpoint.checkpoint_files import remove_checkpoints, steps_done
from rosepo.training.checkpoint.saver import agreed_start
from rosepo.training.engine import prepare_process
from rosepo.training.feed.feed import READ_AHEAD, feed_config, plan_dataset, streamed
from rosepo.training.rank import tell_plain_rows, train_rank
from rosepo.training.task import Task
from rosepo.utils.console import Progress, echo
from rosepo.utils.errors import StageError, UserError
from rosepo.utils.files import write_json
from rosepo.utils.quiet import quiet_worker

if TYPE_CHECKING:
    from ray.train.torch import TorchTrainer

FIGURES_FILE = "_figures.json"
"""What rank 0 hands over, until it was read. Ray 2.55 does not pass on what a worker returns."""
_LESS_MEMORY = "lower {name}.micro_batch_tokens or model.max_length, or set {name}.activation_checkpointing=true"


def fit(
    task: Task,
    out: Path,
    gpu: bool = False,
    label: str | None = None,
    beside: Callable[[], str] | None = None,
    last: Callable[[], None] | None = None,
) -> dict[str, Any]:
    """Train with Ray Train: `task.train.workers` workers, data through `get_dataset_shard`. Ray must be initialised.

    Writes the model, `metrics.jsonl` and `tensorboard/` into `out`, which every worker must reach under this path. Goes
    on from the newest checkpoint of the same training that is there; lost workers are started again and go on from it.

    Args:
        label: what the progress line begins with; None takes the task's name.
        beside: what the progress line also tells, of work that goes on at the same time.
        last: called when the model is there and its checkpoints still are, which stay where it raises.

    Returns:
        Figures: steps, rows, seconds, the last training figures, validation loss; `resumed_from`, the steps that it
        went on from, if any.

    Raises:
        UserError: a worker raised it.
        StageError: a worker failed, or was lost more than `retries` times; the sentence holds the root cause.
    """
    import ray.train

    storage = out / "_ray_train"
    steps, name = task.plan.schedule.steps, label or task.name
    before = steps_done(out, task.origin)
    if before:
        echo(f"  {name} goes on from step {before:,} of {steps:,} that an earlier run reached")
    try:
        progress = Progress(name, steps, before=before, beside=beside)
        with TrainingProgress(progress, out, task.train.workers, shown) as told:
            _fit_with_retries(task, out, storage, gpu, told)
    except ray.train.TrainingFailedError as error:
        raise _told(task, out, error) from error
    finally:
        shutil.rmtree(storage, ignore_errors=True)
    if not (out / FIGURES_FILE).exists():
        raise StageError(f"{task.name}: the workers wrote {out} on another machine: use an --out that all nodes share")
    figures: dict[str, Any] = json.loads((out / FIGURES_FILE).read_text(encoding="utf-8"))
    (out / FIGURES_FILE).unlink()
    tell_plain_rows(name, figures)
    if last is not None:
        last()
    remove_checkpoints(out)
    return figures


def _fit_with_retries(task: Task, out: Path, storage: Path, gpu: bool, told: TrainingProgress) -> None:
    """Train, again where workers were lost, at most `retries` times.

    Ray Train's own `max_failures` would also start a training again that raised an error, which comes again.
    """
    import ray.train

    lost = 0
    while True:
        shutil.rmtree(storage, ignore_errors=True)
        told.starting()
        try:
            run_trainer(_trainer(task, out, storage, gpu))
            return
        except ray.train.TrainingFailedError as error:
            if lost == task.train.retries or not lost_worker(error):
                raise
        lost += 1
        reached, steps = steps_done(out, task.origin), task.plan.schedule.steps
        echo(f"  a worker of {told.progress.label} was lost: it goes on from step {reached:,} of {steps:,}")


def _trainer(task: Task, out: Path, storage: Path, gpu: bool) -> TorchTrainer:
    """The trainer of a task; Ray Train keeps its own files in `storage`."""
    import ray
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    train = task.train
    return TorchTrainer(
        _worker,
        train_loop_config={"task": ray.put(task), "out": str(out), "gpu": gpu},
        scaling_config=ray.train.ScalingConfig(
            num_workers=train.workers, use_gpu=gpu, resources_per_worker={"CPU": train.cpus_per_worker}
        ),
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
        run_config=ray.train.RunConfig(name=task.name, storage_path=str(storage)),
        datasets={"train": plan_dataset(task.plan)},
        dataset_config=feed_config(task.plan, partial(steps_done, out, task.origin)),
    )


def _told(task: Task, out: Path, error: BaseException) -> UserError | StageError:
    """The sentence about a training that failed, and from where the same command goes on."""
    if isinstance(own := told_by_worker(error), UserError):
        return UserError(str(own))
    train, reason = task.train, root_cause(task.name, task.train.workers, error)
    if lost_worker(error):
        times = f" {train.retries + 1} times" if train.retries else ""
        reason = reason.replace(" died,", f" died{times},")
        if reached := steps_done(out, task.origin):
            reason += f"; the same command goes on from step {reached:,} of {task.plan.schedule.steps:,}"
    return StageError(reason)


def shown(figures: dict[str, Any]) -> dict[str, float]:
    """The figures of a metrics line that the progress line shows."""
    names = {"loss": "loss", "rows_per_second": "rows/s", "validation_loss": "validation", "hr@10": "hr@10"}
    return {label: figures[name] for name, label in names.items() if name in figures}


def _worker(config: dict[str, Any]) -> None:
    """What each worker runs; rank 0 leaves its figures in a file."""
    import ray
    import ray.train
    from ray.train.torch import get_device

    quiet_worker()
    task, out = ray.get(config["task"]), Path(config["out"])
    if config["gpu"]:
        torch.cuda.set_device(get_device())
    # Before the data are asked for: they begin with the step of the same checkpoint.
    start = agreed_start(task, out)
    ahead = READ_AHEAD if task.plan.growing is None else 0
    stream = streamed(ray.train.get_dataset_shard("train"), 0 if start is None else start.step, ahead)
    take_cores()
    prepare_process("nccl" if config["gpu"] else "gloo")
    figures = train_rank(task, stream, out, start=start, resumable=True)
    if ray.train.get_context().get_world_rank() == 0:
        write_json(out / FIGURES_FILE, figures)


def take_cores() -> None:
    """Let torch use a training worker's share of the cores: Ray sets one thread a CPU that it accounts for, but what is
    really there is shared by the workers of this node."""
    import ray.train

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(max(1, cores // ray.train.get_context().get_local_world_size()))


def root_cause(name: str, workers: int, error: BaseException) -> str:
    """One sentence about the first worker that failed, without Ray's tracebacks."""
    if (own := told_by_worker(error)) is not None:
        return str(own)
    causes = _causes(error)
    # A rank whose peer died complains about the connection: the peer knows better.
    for rank, cause in sorted(causes.items(), key=lambda pair: (not _died(pair[1]), "onnection" in str(pair[1]))):
        text = str(cause).strip().splitlines() or ["no message"]
        if _died(cause):
            return (
                f"{name}: worker {rank} of {workers} died, as a process does that takes more memory than there is: "
                + ("lower oracle.batch_size" if name == "oracle" else _LESS_MEMORY.format(name=name))
            )
        return f"{name}: worker {rank} of {workers} failed with {type(cause).__name__}: {text[-1]}"
    cause = _innermost(getattr(error, "controller_failure", error))
    text = str(cause).strip().splitlines() or ["no message"]
    return f"{name}: Ray Train failed with {type(cause).__name__}: {text[0]}"


def lost_worker(error: BaseException) -> bool:
    """Whether workers failed because a process or a connection was lost, so that another try may go well: not by an
    error of the training itself, which would come again."""
    if told_by_worker(error) is not None:
        return False
    return any(
        (_died(cause) and not isinstance(cause, torch.OutOfMemoryError))
        or isinstance(cause, torch.distributed.DistError)
        or (isinstance(cause, RuntimeError) and re.search(r"gloo|NCCL|[Cc]onnection", str(cause)) is not None)
        for cause in _causes(error).values()
    )


def told_by_worker(error: BaseException) -> UserError | StageError | None:
    """The error that a worker raised for a person to read; None where there is none."""
    own = [cause for cause in _causes(error).values() if isinstance(cause, (UserError, StageError))]
    return own[0] if own else None


def _causes(error: BaseException) -> dict[int, BaseException]:
    """Why each worker that failed did, by rank."""
    failures: dict[int, BaseException] = getattr(error, "worker_failures", None) or {}
    return {rank: _innermost(failure) for rank, failure in failures.items()}


def _died(cause: BaseException) -> bool:
    # The second kind is also raised for a process whose node was taken away.
    kinds = ("OutOfMemory", "ActorDied", "RayActorError", "WorkerHealthCheckFailed")
    return "worker process has died" in str(cause) or any(kind in type(cause).__name__ for kind in kinds)


def _innermost(error: BaseException) -> BaseException:
    seen: set[int] = set()
    while id(error) not in seen:
        seen.add(id(error))
        inner = getattr(error, "cause", None) or error.__cause__
        # What Ray Data raises of a lost actor names a cause of its own, which tells nothing.
        if not isinstance(inner, BaseException) or isinstance(error, (StageError, UserError)) or _died(error):
            break
        error = inner
    return error


def run_trainer(trainer: TorchTrainer) -> None:
    """`trainer.fit()`, out of which Ctrl-C comes as KeyboardInterrupt.

    While it trains, Ray Train has a handler of its own for Ctrl-C: it ends the workers, and then this process by a
    SystemExit, whose code says nothing.
    """
    with handlers_kept(signal.SIGINT):
        try:
            trainer.fit()
        except SystemExit as stopped:
            raise KeyboardInterrupt from stopped
