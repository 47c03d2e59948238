"""The progress line of a sweep: how many trials are done, and how far those are that run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from ray import tune

from rosepo.run.training_progress import PROGRESS_FILE
from rosepo.utils.console import Progress
from rosepo.utils.follow import follow


class TrialProgress(tune.Callback):
    """Told by Ray Tune of trials that start and end; in between it reads what their trainings tell.

    Args:
        trials: of the whole sweep.
        folder_of: a trial's number to the folder that it trains in.
        shown: metrics of a finished trial that stand beside the count.
    """

    def __init__(self, trials: int, folder_of: Callable[[int], Path], shown: Sequence[str]) -> None:
        self.progress = Progress("sweep", trials, "trials", beside=self.running)
        self._folder_of, self._shown = folder_of, shown
        self._running: dict[int, tuple[ExitStack, dict[str, Any]]] = {}

    def running(self) -> str:
        """How far every trial is that runs."""
        return " · ".join(f"trial {number}{_state(told)}" for number, (_, told) in sorted(self._running.items()))

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        number, stack = int(trial.config["number"]), ExitStack()
        told: dict[str, Any] = {}
        stack.enter_context(follow(self._folder_of(number) / PROGRESS_FILE, partial(self._line, told)))
        self._running = {**self._running, number: (stack, told)}
        self.progress.doing("")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._end(trial)
        self.progress.update(1, **{key: trial.last_result[key] for key in self._shown if key in trial.last_result})

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._end(trial)
        self.progress.update(1)

    def _line(self, told: dict[str, Any], line: dict[str, Any]) -> None:
        told |= {"doing": "", **{key: value for key, value in line.items() if value is not None}}
        self.progress.update(0)

    def _end(self, trial: Any) -> None:
        number = int(trial.config["number"])
        if number in self._running:
            stack = self._running[number][0]
            self._running = {other: state for other, state in self._running.items() if other != number}
            stack.close()


def _state(told: dict[str, Any]) -> str:
    if told.get("doing"):
        return f" {told['doing']}"
    return f" {told['step']:,}/{told['total']:,}" if "step" in told else ""
