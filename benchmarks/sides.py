"""The sides of a comparison, each in a process of its own: neither sees the other's threads, memory or environment.

A side sets itself up, waits, and takes a turn whenever it is told to, so that turns can alternate while only one side
computes. Its highest resident memory is that of the process, libraries included.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import statistics
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import QUICK_REPEATS, REPEATS

Take = Callable[[], dict[str, Any]]
"""One turn: does the work and returns its figures."""


class Side:
    """A process that takes turns.

    Args:
        make: a function of a module, called in the process with `arguments`; returns what a turn calls.
        threads: torch's, in that process.
    """

    def __init__(self, make: Callable[..., Take], *arguments: Any, threads: int | None = None) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        threads = threads or torch.get_num_threads()
        self._process = context.Process(target=_serve, args=(other, make, arguments, threads), daemon=False)
        self._process.start()
        other.close()

    def turn(self) -> dict[str, Any]:
        """The figures of one turn.

        Raises:
            RuntimeError: the process failed; its traceback is the message.
        """
        try:
            self._pipe.send("turn")
            answer = self._pipe.recv()
        except (EOFError, BrokenPipeError):
            self._process.join()
            raise RuntimeError(f"the process of a side ended with exit code {self._process.exitcode}") from None
        if isinstance(answer, str):
            raise RuntimeError(answer)
        figures: dict[str, Any] = answer
        return figures

    def close(self) -> None:
        """End the process."""
        with contextlib.suppress(BrokenPipeError):
            self._pipe.send("end")
        self._process.join()


@dataclass(frozen=True)
class Turns:
    """What a side did."""

    first: dict[str, Any]
    """Figures of its first turn."""
    figures: list[dict[str, Any]]
    """Figures of the turns that count."""

    def median(self, name: str) -> float:
        """Over the turns that count."""
        return statistics.median(figures[name] for figures in self.figures)


@contextlib.contextmanager
def sides(made: Mapping[str, Side]) -> Iterator[Mapping[str, Side]]:
    """The sides, ended after the body."""
    try:
        yield made
    finally:
        for side in made.values():
            side.close()


def in_turns(
    made: Mapping[str, Side],
    quick: bool,
    check: Callable[[Mapping[str, dict[str, Any]]], None] | None = None,
    warm_up: bool = True,
    repeats: int | None = None,
) -> dict[str, Turns]:
    """Every side's turns, in rotation, so that a slow minute hits all of them: one to warm up, then five (three).

    Args:
        check: given every side's first figures before the turns that count; raises where they do not fit together.
        warm_up: off where every turn starts afresh and leaves its own first steps out: then the first turn counts.
        repeats: turns that count; None for five (three with `quick`).
    """
    repeats = repeats or (QUICK_REPEATS if quick else REPEATS)
    first = {name: side.turn() for name, side in made.items()}
    if check is not None:
        check(first)
    rounds = [] if warm_up else [first]
    rounds += [{name: side.turn() for name, side in made.items()} for _ in range(repeats - len(rounds))]
    return {name: Turns(first[name], [figures[name] for figures in rounds]) for name in made}


def peak_mib() -> float:
    """Highest resident memory that this process ever had, in MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("/proc/self/status has no VmHWM: memory is measured on Linux alone")


def _serve(pipe: Any, make: Callable[..., Take], arguments: Sequence[Any], threads: int) -> None:
    # What the libraries print belongs to no table, and an error goes through the pipe.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):  # a process group that this process has would be taken for ours
        os.environ.pop(name, None)
    torch.set_num_threads(threads)
    try:
        take = make(*arguments)
        while pipe.recv() == "turn":
            pipe.send(take())
    except EOFError:
        return
    except BaseException:
        pipe.send(traceback.format_exc())
