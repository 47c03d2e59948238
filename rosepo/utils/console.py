"""What a person sees while rosepo works: plain lines, one progress line a task, small tables.

All of it on stderr, so that stdout stays clean for results.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PLAIN_INTERVAL = 5.0
"""Seconds between two progress lines where stderr is a file."""
TERMINAL_INTERVAL = 0.2
"""Seconds between two redraws of the progress line on a terminal."""

_open_line = False


def echo(text: str) -> None:
    """Print a line (or several) for the user."""
    global _open_line
    if _open_line:
        sys.stderr.write("\n")
        _open_line = False
    print(text, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """`0:07`, `12:30`, `3:05:00`."""
    whole = round(seconds)
    hours, rest = divmod(whole, 3600)
    minutes, secs = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{secs:02d}" if hours else f"{minutes}:{secs:02d}"


def table(rows: Sequence[Sequence[Any]], header: Sequence[str] | None = None) -> str:
    """Rows as text in aligned columns: numbers to the right, words to the left."""
    cells = [[_cell(value) for value in row] for row in rows]
    shown = [list(header), *cells] if header else cells
    columns = range(len(shown[0]) if shown else 0)
    widths = [max(len(row[column]) for row in shown) for column in columns]
    right = [all(row[column][:1] in _NUMERIC for row in cells) for column in columns]
    lines = [
        "  ".join(
            row[column].rjust(widths[column]) if right[column] else row[column].ljust(widths[column])
            for column in columns
        )
        for row in shown
    ]
    if header:
        lines.insert(1, "  ".join("─" * width for width in widths))
    return "\n".join(f"  {line.rstrip()}" for line in lines)


_NUMERIC = ("", "-", *"0123456789")


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) < 100 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


class Progress:
    """One line that moves: ``sft 120/900 · loss 3.210 · 412 rows/s · 0:48 left``.

    On a terminal the line is redrawn in place; elsewhere a line is printed every few seconds, and one at the end.
    """

    def __init__(
        self, label: str, total: int, unit: str = "it", before: int = 0, beside: Callable[[], str] | None = None
    ) -> None:
        """
        Args:
            before: units of the total that an earlier run did; they do not count for the speed.
            beside: how far other work is that goes on meanwhile, for the same line; empty for nothing to tell.
        """
        self._beside = beside or str
        self.label, self.total, self.unit = label, total, unit
        self.done = self.before = before
        self._figures: dict[str, float] = {}
        self._start = time.monotonic()
        self._shown = 0.0
        self._terminal = sys.stderr.isatty()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None and self.done:
            self._show(last=True)

    def update(self, n: int = 1, **figures: float) -> None:
        """Count `n` more units done; `figures` are shown beside the count."""
        self.done += n
        self._figures.update(figures)
        now = time.monotonic()
        if now - self._shown >= (TERMINAL_INTERVAL if self._terminal else PLAIN_INTERVAL):
            self._shown = now
            self._show()

    def _show(self, last: bool = False) -> None:
        global _open_line
        elapsed = max(time.monotonic() - self._start, 1e-9)
        speed = (self.done - self.before) / elapsed
        parts = [f"{self.label} {self.done:,}/{self.total:,}"]
        parts += [f"{name} {value:.4g}" for name, value in self._figures.items()]
        parts.append(f"{speed:,.0f} {self.unit}/s" if speed >= 10 else f"{speed:.2g} {self.unit}/s")
        if last:
            parts.append(f"{duration(elapsed)} in all")
        elif speed:
            parts.append(f"{duration((self.total - self.done) / speed)} left")
        if meanwhile := self._beside():
            parts.append(meanwhile)
        line = "  " + " · ".join(parts)
        if self._terminal:
            sys.stderr.write(f"\r\x1b[2K{line}")
            sys.stderr.flush()
            _open_line = True
            if last:
                echo("")
        else:
            print(line, file=sys.stderr, flush=True)


@contextmanager
def follow(path: Path, show: Callable[[dict[str, Any]], None], interval: float = 0.5) -> Iterator[None]:
    """Pass every JSON line appended to `path` to `show` while the body runs.

    Training runs in other processes, possibly on other machines; its metrics file is the one thing that this process
    can read in any case, so the progress line is drawn from it. What stands in it before is passed over, and where it
    is cut back, lines are read from there on; where it has also grown past the old end since the last look, from there.
    """
    stop = threading.Event()
    before = path.stat().st_size if path.exists() else 0

    def read() -> None:
        position = before
        while True:
            ending = stop.is_set()
            try:
                with path.open(encoding="utf-8") as file:
                    position = min(position, os.fstat(file.fileno()).st_size)
                    file.seek(position)
                    while (line := file.readline()).endswith("\n"):
                        position = file.tell()
                        if (figures := _json_line(line)) is not None:
                            show(figures)
            except FileNotFoundError:
                pass
            if ending:
                return
            stop.wait(interval)

    thread = threading.Thread(target=read, name="rosepo-follow", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=5.0)


def _json_line(line: str) -> dict[str, Any] | None:
    """None for the rest of a line, which is no JSON: a file that was cut back may have grown past the old position."""
    try:
        figures: dict[str, Any] = json.loads(line)
    except ValueError:
        return None
    return figures
