"""How much memory a stage takes: the most that this process and all that it started held at once.

Resident memory, as the system accounts for it: what a process holds alone is added up, and of what it may share with
others (libraries, mapped files, Ray's object store) the largest of all processes counts, once. Processes that a Ray
session started here belong to this one; those of a cluster that was there before do not, and are not seen.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
import time

import psutil

INTERVAL = 0.5
"""Seconds between two looks at least; where a look takes long, as with many processes, twenty times as long as it."""
_MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of malloc.h


def return_freed(least: int) -> None:
    """Let memory that this process frees go back to the system at once where it was asked for in blocks of at least so
    many bytes; by itself the allocator of Linux (glibc) comes to keep blocks of up to 32 MiB. No other is told."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, least)


class MemoryMonitor:
    """Measures while its body runs.

    Attributes:
        peak: bytes, the most of all looks.
        processes: most processes that were seen at once, this one among them.
    """

    def __init__(self) -> None:
        self.peak, self.processes = 0, 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="rosepo-memory", daemon=True)

    def look(self) -> None:
        """Take in what is held now."""
        alone, shared = [], [0]
        this = psutil.Process()
        for process in (this, *this.children(recursive=True)):
            with contextlib.suppress(psutil.Error):  # it has ended meanwhile
                memory = process.memory_info()
                shared.append(getattr(memory, "shared", 0))  # other systems than Linux do not tell
                alone.append(memory.rss - shared[-1])
        self.peak, self.processes = max(self.peak, sum(alone) + max(shared)), max(self.processes, len(alone))

    def _watch(self) -> None:
        took = 0.0
        while not self._over.wait(max(INTERVAL, 20 * took)):
            started = time.monotonic()
            self.look()
            took = time.monotonic() - started

    def __enter__(self) -> MemoryMonitor:
        self.look()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()
        self.look()
