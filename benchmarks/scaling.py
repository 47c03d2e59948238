"""Rows `scaling.*`: the product's training loop in processes of one core each, without Ray.

`scaling.workers.2` is two workers against one, ZeRO-1; `scaling.zero.1`, `.2` and `.3` are ZeRO stages against ZeRO-0,
two workers each. The notes say where the time of rank 0 goes: waiting for data, inside collectives (in which it also
waits for the other rank), taking checkpoints (after every second step, far more often than by itself), and everything
else, which is computation.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch.distributed as dist

from benchmarks.common import Row
from benchmarks.dpo import run_of
from benchmarks.groups_run import settings
from benchmarks.ranks import on_ranks
from benchmarks.sides import Side, Take, Turns, in_turns, sides
from rosepo.run.paths import RunPaths

GROUPS = 8
STEPS, QUICK_STEPS = 6, 3
CHECKPOINT_EVERY = 2
"""Steps; far more often than by itself, so that a few counted steps meet some, the quick ones too."""
COLLECTIVES = (
    "all_reduce",
    "reduce",
    "broadcast",
    "barrier",
    "all_gather",
    "all_gather_into_tensor",
    "reduce_scatter",
    "reduce_scatter_tensor",
    "all_to_all_single",
)


def workers(quick: bool) -> Row:
    """Row `scaling.workers.2`."""
    turns = _measure({"1": (1, 1), "2": (2, 1)}, quick)
    return _row("scaling.workers.2", turns["2"], turns["1"], "one worker")


def zero(quick: bool) -> list[Row]:
    """Rows `scaling.zero.1`, `.2` and `.3`."""
    turns = _measure({str(stage): (2, stage) for stage in range(4)}, quick)
    return [_row(f"scaling.zero.{stage}", turns[str(stage)], turns["0"], "ZeRO-0") for stage in (1, 2, 3)]


def _row(name: str, ours: Turns, rival: Turns, against: str) -> Row:
    rate, other = ours.median("rate"), rival.median("rate")
    return Row(name, rate, "groups/s", against, other, rate / other, f"{_shares(ours)} ({against}: {_shares(rival)})")


def _shares(turns: Turns) -> str:
    return ", ".join(f"{name} {turns.median(name):.0%}" for name in ("data", "compute", "communication", "checkpoints"))


def _measure(made: dict[str, tuple[int, int]], quick: bool) -> dict[str, Turns]:
    """Turns by name of trainings of (workers, ZeRO stage)."""
    steps = QUICK_STEPS if quick else STEPS
    with (
        run_of(GROUPS, 1) as outputs,
        sides({name: Side(training, outputs, steps, *how, threads=1) for name, how in made.items()}) as running,
    ):
        return in_turns(running, quick, warm_up=False, repeats=1 if quick else None)


def training(outputs: RunPaths, steps: int, world: int, stage: int) -> Take:
    """A turn starts `world` processes, trains one step that does not count, then `steps` that do."""
    return lambda: on_ranks(world, 1, rank_training, outputs, steps, stage)


def rank_training(rank: int, world: int, outputs: RunPaths, steps: int, stage: int) -> dict[str, float]:
    """Groups a second of one rank's counted steps, and the shares of their time."""
    clock = CollectiveClock()
    from rosepo.training.align import align_task
    from rosepo.training.checkpoint.saver import Saver
    from rosepo.training.engine import prepare_process
    from rosepo.training.feed.feed import micro_batches
    from rosepo.training.rank import train_rank

    config = settings(
        batch_size=GROUPS,
        micro_batch_size=GROUPS // world,
        zero_stage=stage,
        epochs=1 + steps,
        log_every=1,
        checkpoint_every=CHECKPOINT_EVERY,
    )
    task = align_task(config, outputs)
    prepare_process()
    waited = saving = 0.0
    marks: list[tuple[float, float, float, float]] = []
    save = Saver.save

    def saved(*arguments: Any) -> None:
        """Its collectives count as the checkpoint's."""
        nonlocal saving
        started, before = time.perf_counter(), clock.seconds
        save(*arguments)
        saving += time.perf_counter() - started
        clock.seconds = before

    def fed() -> Iterator[Any]:
        nonlocal waited
        source = micro_batches(task.plan, rank, world)
        while True:
            started = time.perf_counter()
            arrays = next(source, None)
            waited += time.perf_counter() - started
            if arrays is None:
                return
            yield arrays

    def report(step: int, figures: dict[str, float]) -> None:
        marks.append((time.perf_counter(), clock.seconds, waited, saving))

    out = Path(tempfile.mkdtemp(prefix="rosepo-benchmark-aligned-"))
    Saver.save = saved  # type: ignore[method-assign]
    try:
        train_rank(task, fed(), out, report, resumable=True)
    finally:
        Saver.save = save  # type: ignore[method-assign]
        shutil.rmtree(out, ignore_errors=True)
    if rank:
        return {}
    first, last = marks[1], marks[1 + steps]
    seconds, communication, data, checkpoints = (end - start for start, end in zip(first, last))
    shares = {
        "data": data / seconds,
        "communication": communication / seconds,
        "checkpoints": checkpoints / seconds,
    }
    return {"rate": GROUPS * steps / seconds, **shares, "compute": 1.0 - sum(shares.values())}


class CollectiveClock:
    """Seconds that this process spends in collectives of torch.distributed, waiting for asynchronous ones included.

    Replaces the functions from its making on, so it comes before DeepSpeed, which keeps references to some of them.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._inside = False
        for name in COLLECTIVES:
            setattr(dist, name, self._timed(getattr(dist, name)))

    def _timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **named: Any) -> Any:
            if self._inside:  # some collectives are made of others
                return call(*arguments, **named)
            self._inside = True
            started = time.perf_counter()
            try:
                work = call(*arguments, **named)
            finally:
                self._inside = False
                self.seconds += time.perf_counter() - started
            return None if work is None else _TimedWork(work, self)

        return timed


class _TimedWork:
    """An asynchronous collective whose waiting is timed."""

    def __init__(self, work: Any, clock: CollectiveClock) -> None:
        self._work, self._clock = work, clock

    def wait(self, *arguments: Any) -> Any:
        started = time.perf_counter()
        done = self._work.wait(*arguments)
        self._clock.seconds += time.perf_counter() - started
        return done

    def __getattr__(self, name: str) -> Any:
        return getattr(self._work, name)
