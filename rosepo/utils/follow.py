"""What other processes append to a file, shown as it comes."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def follow(path: Path, show: Callable[[dict[str, Any]], None], interval: float = 0.5) -> Iterator[None]:
    """Pass every JSON line appended to `path` to `show` while the body runs.

    Training runs in other processes, possibly on other machines; a file in its folder is the one thing that this
    process can read in any case. It is opened anew at every look, so that a network file system shows what is new.
    """
    stop = threading.Event()
    before = path.stat().st_size if path.exists() else 0

    def read() -> None:
        position = before
        while True:
            ending = stop.is_set()
            whole = b""
            with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
                file.seek(position)
                whole = file.read().rpartition(b"\n")[0]
            position += len(whole) + bool(whole)
            for line in whole.splitlines():
                show(json.loads(line))
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
