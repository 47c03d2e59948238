"""How far tasks of Ray Data are, told by the tasks themselves: the process that waits for them sees only the end."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

from rosepo.utils.console import Progress

INTERVAL = 0.5
"""Seconds between two looks."""
_PATIENCE = 10.0

Phase = tuple[str, int | None, str]
"""Label, total (None where nobody knows it) and unit of a phase."""


class Counter:
    """The actor that tasks add to."""

    def __init__(self) -> None:
        self.count = 0

    def add(self, count: int) -> None:
        self.count += count

    def read(self) -> int:
        return self.count


@contextlib.contextmanager
def counting(progress: Progress, *phases: Phase) -> Iterator[Any]:
    """A handle for tasks to call `add.remote` on, which moves the line while the body waits for them.

    Args:
        phases: filled one after the other; all but the last have a total.
    """
    import ray

    counter: Any = ray.remote(Counter).options(num_cpus=0).remote()
    over = threading.Event()
    first, *left = phases
    progress.phase(*first)

    def look() -> None:
        before = 0
        while not over.wait(INTERVAL):
            try:
                count = ray.get(counter.read.remote(), timeout=_PATIENCE) - before
            except ray.exceptions.RayError:  # a line that stands still is no reason to stop work
                continue
            while left and progress.total is not None and count >= progress.total:
                count, before = count - progress.total, before + progress.total
                progress.phase(*left.pop(0))
            progress.update(count - progress.done)

    thread = threading.Thread(target=look, name="rosepo-counting", daemon=True)
    thread.start()
    try:
        yield counter
    finally:
        over.set()
        thread.join()
        ray.kill(counter)
