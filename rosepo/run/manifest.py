"""The manifest of a stage, and what it says of the software that made it."""

from __future__ import annotations

import json
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import rosepo

MANIFEST = "_manifest.json"
"""Begins with an underscore so that a reader of Parquet folders passes it over."""


LIBRARIES = ("torch", "ray", "deepspeed", "transformers", "peft", "tokenizers", "pyarrow", "numpy")


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
