"""Folders that take their place when they are whole: at once, or in parts from which a later command goes on."""

from __future__ import annotations

import fcntl
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from rosepo.utils.errors import UserError


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """An empty folder beside `folder` that takes its place when the body ends well, and is removed when it does not."""
    with passing(folder) as aside:
        yield aside
        _take_place(aside, folder)


@contextmanager
def passing(folder: Path) -> Iterator[Path]:
    """An empty folder beside `folder`, where whoever sees that sees it too, that is removed when the body ends."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(folder)
    aside = folder.parent / f".{folder.name}.{os.getpid()}.tmp"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        yield aside
    finally:
        shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def continuing(folder: Path, key: str) -> Iterator[Path]:
    """As `replacing`, for long work that is done in parts: what a body that did not end well leaves behind is kept
    beside `folder`, hidden, for the next one with the same key. One with another key starts anew.

    Raises:
        UserError: another process is at work on it.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(folder.parent, folder):
        _remove_stale(folder)
        aside = partial_folder(folder, key)
        for stale in folder.parent.glob(f".{folder.name}.*.partial"):
            if stale != aside:
                shutil.rmtree(stale, ignore_errors=True)
        aside.mkdir(exist_ok=True)
        try:
            yield aside
            _take_place(aside, folder)
        finally:
            if aside.exists() and not any(aside.iterdir()):
                aside.rmdir()


def partial_folder(folder: Path, key: str) -> Path:
    """Where `continuing` keeps the parts of `folder` until it is whole."""
    return folder.parent / f".{folder.name}.{key}.partial"


_locks: dict[Path, tuple[int, frozenset[str]]] = {}
"""Directories that this process has locked: the handle, and the folders in it that are being written."""
_locks_guard = threading.Lock()


@contextmanager
def _locked(directory: Path, folder: Path) -> Iterator[None]:
    """One process at a time in `directory`, which may write several of its folders at once."""
    directory, name = directory.resolve(), folder.name
    with _locks_guard:
        handle, names = _locks.get(directory) or (_lock(directory, folder), frozenset())
        if name in names:
            raise UserError(_WRITTEN.format(folder=folder))
        _locks[directory] = (handle, names | {name})
    try:
        yield
    finally:
        with _locks_guard:
            handle, names = _locks.pop(directory)
            if names == {name}:
                os.close(handle)
            else:
                _locks[directory] = (handle, names - {name})


_WRITTEN = "another rosepo is writing {folder}: wait for it, or use another --out"


def _lock(directory: Path, folder: Path) -> int:
    """The handle that holds the lock; the system lets go of it when the process ends, however it ends."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise UserError(_WRITTEN.format(folder=folder)) from None
    except OSError:
        pass  # a file system without locks
    return handle


def _remove_stale(folder: Path) -> None:
    """What processes that are no more left beside `folder`."""
    for stale in folder.parent.glob(f".{folder.name}.*.tmp"):
        pid = stale.name.split(".")[-2]
        if not (pid.isdigit() and psutil.pid_exists(int(pid))):
            shutil.rmtree(stale, ignore_errors=True)


def _take_place(aside: Path, folder: Path) -> None:
    old = folder.parent / f".{folder.name}.old.{os.getpid()}.tmp"
    if folder.exists():
        folder.replace(old)
    aside.replace(folder)
    shutil.rmtree(old, ignore_errors=True)
