"""Where the outputs of a run live, and the manifest that says how each was made."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import shutil
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import rosepo
from rosepo.utils.errors import UserError

MANIFEST = "_manifest.json"
"""Begins with an underscore so that a reader of Parquet folders passes it over."""
LIBRARIES = ("torch", "ray", "deepspeed", "transformers", "peft", "tokenizers", "pyarrow", "numpy")


def of_round(name: str, round: int) -> str:
    """The name of a stage or a folder in a round: itself in the first, `name-2`, `name-3`, … later."""
    return name if round == 1 else f"{name}-{round}"


@dataclass(frozen=True)
class Outputs:
    """The folders of one run, as a stage of one round sees them.

    Attributes:
        root: the run's folder.
        round: of pairs and alignment, from 1 on.
        moved: whether the reference of later rounds is the policy that they start from, instead of the SFT model.
    """

    root: Path
    round: int = 1
    moved: bool = False

    @property
    def examples(self) -> Path:
        return self.root / "examples"

    @property
    def sft(self) -> Path:
        return self.root / "sft"

    @property
    def oracle(self) -> Path:
        return self.root / "oracle"

    @property
    def policy(self) -> Path:
        """The model that samples in this round and that its alignment starts from."""
        return self.sft if self.round == 1 else self.root / of_round("aligned", self.round - 1)

    @property
    def reference(self) -> Path:
        """The model that this round's policy is compared with."""
        return self.policy if self.moved else self.sft

    @property
    def groups(self) -> Path:
        return self.root / of_round("groups", self.round)

    @property
    def aligned(self) -> Path:
        return self.root / of_round("aligned", self.round)

    @property
    def rounds(self) -> tuple[Outputs, ...]:
        """The same run as every round up to this one sees it."""
        return tuple(replace(self, round=number) for number in range(1, self.round + 1))

    @property
    def sweep(self) -> Path:
        return self.root / "sweep"

    @property
    def evaluation(self) -> Path:
        return self.root / "evaluation"


def digest(value: Any) -> str:
    """A short content hash of a JSON-able value; equal values give equal digests on any machine."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_digest(path: Path) -> str:
    """A short hash of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def versions() -> dict[str, str]:
    """The versions that a result depends on."""
    found = {"rosepo": rosepo.__version__, "python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def git_revision() -> str | None:
    """The revision of the checkout that rosepo runs from (`+`: files were changed); None for an installed package."""
    here = Path(__file__).resolve().parents[1]
    if not (here.parent / ".git").exists():
        return None
    try:
        run = {"cwd": here, "capture_output": True, "text": True, "timeout": 10, "check": True}
        revision = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], **run).stdout.strip()  # type: ignore[call-overload]
        changed = subprocess.run(["git", "status", "--porcelain", "-uno"], **run).stdout.strip()  # type: ignore[call-overload]
    except (OSError, subprocess.SubprocessError):
        return None
    return revision + ("+" if changed else "")


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a finished stage, None where there is none."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except json.JSONDecodeError:
        return None
    return manifest if isinstance(manifest, dict) else None


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """A JSON file, written as `write_text` does."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, default=_plain) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write aside, then rename: a reader sees the old file or the new one, never half of one."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)


def copy_file(source: Path, target: Path) -> None:
    """Copy aside, then rename."""
    aside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    shutil.copyfile(source, aside)
    aside.replace(target)


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """An empty folder beside `folder` that takes its place when the body ends well, and is removed when it does not."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(folder)
    aside = folder.parent / f".{folder.name}.{os.getpid()}.tmp"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        yield aside
        _take_place(aside, folder)
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
        if not _alive(stale.name.split(".")[-2]):
            shutil.rmtree(stale, ignore_errors=True)


def _take_place(aside: Path, folder: Path) -> None:
    old = folder.parent / f".{folder.name}.old.{os.getpid()}.tmp"
    if folder.exists():
        folder.replace(old)
    aside.replace(folder)
    shutil.rmtree(old, ignore_errors=True)


def now() -> str:
    """The time in UTC, ISO 8601 to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _alive(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return True


def _plain(value: Any) -> Any:
    """NumPy scalars and arrays as Python numbers and lists; anything else as text."""
    return value.tolist() if hasattr(value, "tolist") else str(value)
