"""How much memory a stage takes: the most that this process and all that it started held at once.

Looked at on this machine, twice a second, from the system's own account (Linux). Pages that processes share, such as
libraries and Ray's object store, count once. Processes of a cluster that was there before are not this one's, and are
not seen.
"""

from __future__ import annotations

import os
import resource
import sys
import threading
from collections import defaultdict
from contextvars import ContextVar, Token
from pathlib import Path
from types import TracebackType

INTERVAL = 0.5
"""Seconds between two looks."""

_PROC = Path("/proc")
_running: ContextVar[MemoryMonitor | None] = ContextVar("rosepo_memory_meter", default=None)


class MemoryMonitor:
    """Measures while its body runs.

    Attributes:
        processes: most processes that were seen at once, this one among them.
    """

    def __init__(self) -> None:
        self.processes = 1
        self._seen = 0
        self._before = own_peak()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="rosepo-memory", daemon=True)
        self._token: Token[MemoryMonitor | None] | None = None

    @property
    def peak(self) -> int:
        """Bytes, up to now."""
        # The system's own mark of this process misses nothing between two looks, but only a stage that raised it knows
        # that the mark is its own.
        highest = own_peak()
        return max(self._seen, highest if highest > self._before else 0)

    def look(self) -> None:
        """Take in what is held now."""
        held, processes = held_by_tree(os.getpid())
        self._seen, self.processes = max(self._seen, held), max(self.processes, processes)

    def _watch(self) -> None:
        while not self._over.wait(INTERVAL):
            self.look()

    def __enter__(self) -> MemoryMonitor:
        self.look()
        self._thread.start()
        self._token = _running.set(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._token is not None:
            _running.reset(self._token)
        self._over.set()
        self._thread.join()
        self.look()


def running_monitor() -> MemoryMonitor | None:
    """That of the stage that is running in this thread, if any."""
    return _running.get()


def own_peak() -> int:
    """Bytes that this process has held at most since it began."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def held_by_tree(root: int) -> tuple[int, int]:
    """Bytes held by a process and all below it, pages that they share counted once, and how many processes there are.

    Where the system does not tell (no /proc): what this process has held at most, and 1.
    """
    kinds = [_resident(pid) for pid in _tree(root)]
    found = [kind for kind in kinds if kind is not None]
    if not found:
        return own_peak(), 1
    alone, *shared = zip(*found, strict=True)
    return sum(alone) + sum(max(each) for each in shared), len(found)


def _tree(root: int) -> list[int]:
    children: dict[int, list[int]] = defaultdict(list)
    for entry in _PROC.iterdir() if _PROC.is_dir() else ():
        if entry.name.isdigit():
            try:
                # The name, in brackets, may hold anything; the parent is the second field behind it.
                parent = int((entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[1])
            except (OSError, IndexError, ValueError):
                continue
            children[parent].append(int(entry.name))
    found = [root]
    for pid in found:
        found += children[pid]
    return found


def _resident(pid: int) -> tuple[int, int, int] | None:
    """Bytes of a process: its own, those of files that it maps, those of shared memory. None where it is gone."""
    try:
        lines = (_PROC / str(pid) / "status").read_text(errors="replace").splitlines()
    except OSError:
        return None
    fields = {name: value.split() for name, _, value in (line.partition(":") for line in lines)}
    kinds = ("RssAnon", "RssFile", "RssShmem")
    return tuple(1024 * int(fields[kind][0]) for kind in kinds) if kinds[0] in fields else None  # type: ignore[return-value]
