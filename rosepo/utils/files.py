"""Files that are whole or not there, and digests of values and of files."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


def digest(value: Any) -> str:
    """A short content hash of a JSON-able value; equal values give equal digests on any machine."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_digest(path: Path) -> str:
    """A short hash of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """A JSON file, written as `write_text` does."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, default=_plain) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write aside, then rename: a reader sees the old file or the new one, never half of one."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)


def cache_folder() -> Path:
    """What runs of one user share: $ROSEPO_CACHE, or ~/.cache/rosepo."""
    home = os.environ.get("ROSEPO_CACHE")
    return Path(home).expanduser() if home else Path.home() / ".cache" / "rosepo"


def now() -> str:
    """The time in UTC, ISO 8601 to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _plain(value: Any) -> Any:
    """NumPy scalars and arrays as Python numbers and lists; anything else as text."""
    return value.tolist() if hasattr(value, "tolist") else str(value)
