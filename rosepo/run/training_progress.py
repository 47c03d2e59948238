"""How far a training is: its first worker tells in a file, and the process that started it draws a line of that.

Metrics come every `log_every` steps, which with a large model may take minutes. This file has a line whenever half a
second has passed, and what goes on before the first step and after the last; it is gone when the training is over.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rosepo.utils.console import Progress
from rosepo.utils.follow import follow

Show = Callable[[dict[str, float]], dict[str, float]]

PROGRESS_FILE = "_progress.jsonl"
INTERVAL = 0.5
"""Seconds between two lines about steps, where they have no figures."""


class ProgressTeller:
    """The worker's side.

    Args:
        folder: where the file is written to; None tells nothing, as ranks but the first do.
    """

    def __init__(self, folder: Path | None) -> None:
        self._path = None if folder is None else folder / PROGRESS_FILE
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        self._told = time.monotonic()

    def doing(self, what: str) -> None:
        """What goes on now, until the next step."""
        self._write({"doing": what})

    def begin(self, step: int, total: int) -> None:
        """Training begins, or goes on, behind so many of all steps."""
        self._write({"begin": step, "total": total, "doing": "first step"})

    def step(self, step: int, figures: Mapping[str, float] | None = None, total: int | None = None) -> None:
        """So many steps are done; `total` where it has changed."""
        if figures or time.monotonic() - self._told >= INTERVAL:
            self._write({"step": step, "figures": dict(figures or {}), "total": total})

    def _write(self, line: Mapping[str, Any]) -> None:
        if self._path is not None:
            self._told = time.monotonic()
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


class TrainingProgress:
    """The side of the process that started the training: a progress line from the start of the workers on.

    Args:
        folder: of the training.
        workers: that are to be started, for the first words.
        show: the figures of a line of metrics to those that are shown.
    """

    def __init__(self, progress: Progress, folder: Path, workers: int, show: Show = dict) -> None:
        self.progress, self.workers, self._show = progress, workers, show
        self._path = folder / PROGRESS_FILE
        self._stack = ExitStack()

    def __enter__(self) -> TrainingProgress:
        self._path.unlink(missing_ok=True)
        with ExitStack() as stack:
            stack.callback(self._path.unlink, missing_ok=True)
            stack.enter_context(self.progress)
            stack.enter_context(follow(self._path, self.line))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> bool | None:
        return self._stack.__exit__(*error)

    def starting(self) -> None:
        """Workers are being started."""
        self.progress.doing(f"starting {self.workers} worker{'' if self.workers == 1 else 's'}")

    def line(self, told: dict[str, Any]) -> None:
        """Take in one line of the worker's."""
        if "begin" in told:
            # The speed leaves out what it took to start the workers.
            self.progress.restart(told["begin"])
            self.progress.total = told["total"]
        if "doing" in told:
            self.progress.doing(told["doing"])
        if "step" in told:
            self.progress.total = told["total"] or self.progress.total
            self.progress.update(told["step"] - self.progress.done, **self._show(told["figures"]))
