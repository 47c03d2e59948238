"""Folders that take their place when they are whole: at once, or in parts from which a later command goes on."""

from __future__ import annotations

import fcntl
import os
import platform
import shutil
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

import psutil

from rosepo.utils.console import echo
from rosepo.utils.errors import UserError
from rosepo.utils.files import digest


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
    aside = _own_name(folder)
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


LOCK_FILE = ".lock"
"""Locked where the file system does not lock the directory itself."""
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
    """The handle that holds the lock; the system lets go of it when the process ends, however it ends.

    NFS locks nothing that is not open for writing, so no directory: there a hidden file in it is locked instead.
    """
    refused = ""
    for path, flags in ((directory, os.O_RDONLY), (directory / LOCK_FILE, os.O_RDWR | os.O_CREAT)):
        handle = os.open(path, flags, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return handle
        except OSError as error:
            os.close(handle)
            if isinstance(error, BlockingIOError):
                raise UserError(_WRITTEN.format(folder=folder)) from None
            refused = str(error.strerror)
    echo(f"  {directory} cannot be locked ({refused}): see to it that no other rosepo writes there")
    return os.open(directory, os.O_RDONLY)


def _remove_stale(folder: Path) -> None:
    """What processes of this machine that are no more left beside `folder`. Whether one of another machine still works
    cannot be asked here: what it made is left alone."""
    for stale in folder.parent.glob(f".{folder.name}.{_machine()}-*.tmp"):
        pid = stale.name.split("-")[-2]
        if not psutil.pid_exists(int(pid)):
            shutil.rmtree(stale, ignore_errors=True)


def _own_name(folder: Path) -> Path:
    """A new hidden name beside `folder`, which says what process of what machine it belongs to."""
    return folder.with_name(f".{folder.name}.{_machine()}-{os.getpid()}-{uuid.uuid4().hex}.tmp")


@cache
def _machine() -> str:
    """Among what processes this one's number means it: those of this host since it started, in this container."""
    about = [platform.node()]
    with suppress(OSError):
        about.append(Path("/proc/sys/kernel/random/boot_id").read_text())
        about.append(str(Path("/proc/self/ns/pid").readlink()))
    return digest(about)


def _take_place(aside: Path, folder: Path) -> None:
    old = _own_name(folder)
    if folder.exists():
        folder.replace(old)
    aside.replace(folder)
    shutil.rmtree(old, ignore_errors=True)
