"""Ctrl-C and SIGTERM, which end a command in one way: by a KeyboardInterrupt in its main thread."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


@contextmanager
def handlers_kept(*signals: signal.Signals) -> Iterator[None]:
    """Put the handlers back that were there before the body: Ray leaves its own behind.

    Outside the main thread, where no handler can be set, nothing is done.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in signals}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def interrupt_on_sigterm() -> None:
    """Let SIGTERM, which `ray job stop` and cluster managers send, go the way that Ctrl-C goes at the time."""
    signal.signal(signal.SIGTERM, _as_ctrl_c)


def _as_ctrl_c(number: int, frame: FrameType | None) -> None:
    handler = signal.getsignal(signal.SIGINT)
    # A process that a script started in the background ignores SIGINT: its SIGTERM must count all the same.
    if callable(handler):
        handler(signal.SIGINT, frame)
    raise KeyboardInterrupt


def run_trainer(trainer: Any) -> None:
    """`fit()` of a trainer of Ray Train, out of which Ctrl-C comes as KeyboardInterrupt.

    While it trains, Ray Train has a handler of its own for Ctrl-C: it ends the workers, and then this process by a
    SystemExit, whose code says nothing.
    """
    with handlers_kept(signal.SIGINT):
        try:
            trainer.fit()
        except SystemExit as stopped:
            raise KeyboardInterrupt from stopped
