"""What a person sees while rosepo works: lines, one moving line a task, small tables.

All of it on stderr, so that stdout stays clean for results. A terminal gets a bar that is drawn in place; a pipe, a log
file or the log of a Ray job gets the same words as plain lines, one every few seconds at most. Text is shown as it is:
a title such as `[REC]` is no markup.
"""

from __future__ import annotations

import io
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any, TextIO, TypeVar

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.file_proxy import FileProxy
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

PLAIN_INTERVAL = 5.0
"""Seconds between two progress lines where stderr is no terminal."""
BAR_WIDTH, WIDE = 20, 80
"""Columns of the bar, and those that a terminal must have for one."""

T = TypeVar("T")

_guard = threading.Lock()
_open: list[Progress] = []
_live: Live | None = None


def echo(text: str) -> None:
    """Print a line (or several) for the user; long ones are left to the terminal to wrap."""
    _console().print(text, markup=False, emoji=False, highlight=False, soft_wrap=True)


def duration(seconds: float) -> str:
    """`0:07`, `12:30`, `3:05:00`."""
    minutes, secs = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{secs:02d}" if hours else f"{minutes}:{secs:02d}"


def table(rows: Sequence[Sequence[Any]], header: Sequence[str] | None = None, stream: TextIO | None = None) -> str:
    """Rows as text in aligned columns: numbers to the right, words to the left.

    Args:
        stream: where it will be printed; None for stderr. Cells are folded to the width of a terminal, and to no other.
    """
    cells = [[_cell(value) for value in row] for row in rows]
    drawn = Table(box=SIMPLE_HEAD, show_header=header is not None, show_edge=False, pad_edge=False)
    for number, name in enumerate(header or (cells[0] if cells else ())):
        numeric = all(row[number][:1] in _NUMERIC for row in cells)
        drawn.add_column(Text(name), justify="right" if numeric else "left", overflow="fold")
    for row in cells:
        drawn.add_row(*map(Text, row))
    console = _console(stream)
    width = console.width - 2 if console.is_terminal else 10_000
    paper = Console(file=io.StringIO(), width=width, color_system=None, force_jupyter=False)
    paper.print(drawn)
    return "\n".join(f"  {line.rstrip()}" for line in paper.file.getvalue().splitlines())  # type: ignore[attr-defined]


_NUMERIC = ("", "-", *"0123456789")


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) < 100 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


class Progress:
    """One line that moves: ``sft 120/900 · 0:48 left · 16 steps/s · 0:07 elapsed · loss 3.21``; a context manager.

    Attributes:
        done: units so far.
    """

    def __init__(
        self,
        label: str,
        total: int | None,
        unit: str = "steps",
        before: int = 0,
        beside: Callable[[], str] | None = None,
        transient: bool = False,
    ) -> None:
        """
        Args:
            total: None where it is not known beforehand.
            unit: in the plural.
            before: units of the total that an earlier run did; they do not count for the speed.
            beside: how far other work is that goes on meanwhile, for the same line; empty for nothing to tell.
            transient: leave no line behind at the end.
        """
        self.label, self.total, self.unit, self.transient = label, total, unit, transient
        self._beside = beside or str
        self._doing = ""
        self._told: set[str] = set()
        self._figures: dict[str, float] = {}
        self._shown = -PLAIN_INTERVAL
        self.restart(before)

    def restart(self, done: int) -> None:
        """Measure the speed from here on, with `done` units behind."""
        self.done = self._before = done
        self._start = self._counted = time.monotonic()

    def phase(self, label: str, total: int | None, unit: str) -> None:
        """Go over to other work, counted from nothing."""
        self.label, self.total, self.unit = label, total, unit
        self.restart(0)
        self.update(0)

    def over(self, items: Iterable[T], size: Callable[[T], int] = lambda item: 1) -> Iterator[T]:
        """The items, each counted as it comes."""
        for item in items:
            self.update(size(item))
            yield item

    def update(self, n: int = 1, **figures: float) -> None:
        """Count `n` more units done; `figures` are shown beside the count."""
        self.done += n
        if n:
            self._doing, self._counted = "", time.monotonic()
        self._figures = {**self._figures, **figures}
        self._print()

    def doing(self, what: str) -> None:
        """Say what goes on until more is counted; where lines are plain, at once for the first time."""
        self._doing = what
        self._print(at_once=what not in self._told)
        self._told.add(what)

    def __enter__(self) -> Progress:
        global _live
        with _guard:
            _open.append(self)
            if _live is None and _console().is_interactive:
                # Results may go to the same terminal: stdout stays what it is.
                _live = Live(console=_console(), get_renderable=_drawn, transient=True, redirect_stdout=False)
                _live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        global _live
        with _guard:
            _open.remove(self)
            if not _open and _live is not None:
                _live.stop()
                _live = None
        if kind is None and self.done and not self.transient:
            echo(f"  {self.label} {self._words(last=True)}")

    def _print(self, at_once: bool = False) -> None:
        if _live is None and (at_once or time.monotonic() - self._shown >= PLAIN_INTERVAL):
            self._shown = time.monotonic()
            echo(f"  {self.label} {self._words()}")

    def _words(self, last: bool = False) -> str:
        elapsed, counted = time.monotonic() - self._start, self._counted - self._start
        # A first moment tells nothing about speed. Between two counts time goes by, and the speed stays what it was.
        made = self.done - self._before if last or counted > 0.5 else 0
        speed = made / max(counted, 1e-9)
        parts = []
        if self.done or not self._doing:
            parts.append(f"{self.done:,}/{self.total:,}" if self.total is not None else f"{self.done:,} {self.unit}")
        if last:
            parts.append(f"{duration(elapsed)} in all")
        else:
            parts += [self._doing] if self._doing else []
            if made and self.total is not None:
                parts.append(f"{duration(max(0.0, (self.total - self.done) / speed - elapsed + counted))} left")
        if made:
            parts.append(_speed(speed, self.unit))
        if not last:
            parts.append(f"{duration(elapsed)} elapsed")
        parts += [f"{name} {value:.4g}" for name, value in self._figures.items()]
        if meanwhile := self._beside():
            parts.append(meanwhile)
        return " · ".join(parts)

    def line(self, width: int) -> RenderableType:
        """What a terminal of `width` columns shows now."""
        words = Text(self._words(), no_wrap=True, overflow="ellipsis")
        if width < WIDE:
            return Text(f"  {self.label} ", no_wrap=True, overflow="ellipsis").append_text(words)
        line = Table.grid(padding=(0, 1))
        known = self.total is not None and self.done > 0
        bar = ProgressBar(self.total or 1, self.done if known else 0, width=BAR_WIDTH, pulse=not known)
        line.add_row(Text(f"  {self.label}", no_wrap=True), bar, words)
        return line


def _speed(each_second: float, unit: str) -> str:
    if each_second < 1:
        return f"{1 / each_second:,.1f} s/{unit.removesuffix('s')}"
    return f"{each_second:,.0f} {unit}/s" if each_second >= 10 else f"{each_second:.1f} {unit}/s"


def _drawn() -> RenderableType:
    return Group(*(progress.line(_console().width) for progress in tuple(_open)))


def _console(stream: TextIO | None = None) -> Console:
    found = stream or sys.stderr
    return _console_on(found.rich_proxied_file if isinstance(found, FileProxy) else found)


@lru_cache(maxsize=2)
def _console_on(stream: TextIO) -> Console:
    """Only a terminal is treated as one, whatever FORCE_COLOR says: no control characters in a log."""
    return Console(file=stream, force_terminal=stream.isatty(), force_jupyter=False)
