"""A run as a process of its own, and one command at a time in a folder of experiments."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rosepo.utils.console import echo
from rosepo.utils.processes import end_with_parent

PATIENCE = 60
"""Seconds that a run may take to stop in good order."""


def call(command: list[str], log: Path, lock: int) -> str | None:
    """Run a command, all that it says in `log`; returns the sentence of its error, or None.

    The run is a session of its own: Ctrl-C reaches this process alone, which then sends it one SIGTERM, an orderly
    stop. It shares the lock, so that the next command waits for the end of a run whose own command was killed.
    """
    told = "it said nothing"
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
        pass_fds=(lock,),
        preexec_fn=end_with_parent if sys.platform == "linux" else None,
    )
    try:
        assert process.stdout is not None
        with log.open("a", encoding="utf-8") as file:
            for line in process.stdout:
                file.write(line)
                file.flush()
                if line.startswith("["):
                    echo(f"    {line.rstrip()}")
                elif line.strip():
                    told = line.strip()
        code = process.wait()
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
    if code == 0:
        return None
    if code < 0:
        return f"ended by {signal.Signals(-code).name}; its last line: {told} ({log})"
    return f"{told.removeprefix('error: ')} ({log})"


@contextmanager
def only_one(out: Path) -> Iterator[int]:
    """The lock of a folder of experiments: one command at a time, others wait for its end."""
    out.mkdir(parents=True, exist_ok=True)
    handle = os.open(out, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            echo(f"  another rosepo is at work in {out}: waiting for its end")
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError:
            pass  # a file system without locks
        yield handle
    finally:
        os.close(handle)
