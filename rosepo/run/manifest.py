"""The manifest of a stage: where it is read, which ones are refused, and what it says of the software that made it."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import rosepo
from rosepo.utils.errors import UserError

MANIFEST = "_manifest.json"
"""Begins with an underscore so that a reader of Parquet folders passes it over."""

FORMAT = 3
"""Of what stages leave: manifest, tables, models. To be raised with any change after which a folder that was written
before would be misread, or after which its fingerprint would no longer say what it says now. Folders of another format
are refused, see `read_manifest`, not converted. 1: had no such number. 2: settings did not follow from the data."""
REMADE = "use another --out, or `rosepo run --overwrite` to make it again"

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


def find_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a finished stage of whatever format, None where there is none."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return None
    return manifest if isinstance(manifest, dict) else None


def read_manifest(folder: Path, remedy: str = REMADE) -> dict[str, Any] | None:
    """The manifest of a finished stage, None where there is none.

    Raises:
        UserError: see `check_format`.
    """
    manifest = find_manifest(folder)
    if manifest is not None:
        check_format(manifest, folder, remedy)
    return manifest


def check_format(manifest: Mapping[str, Any], folder: Path, remedy: str = REMADE) -> None:
    """Refuse a folder that was made by a rosepo of another `FORMAT`.

    Args:
        manifest: the folder's own, see `find_manifest`.
        remedy: what to do with it, for the message.

    Raises:
        UserError: naming the folder and the version that made it.
    """
    if not of_this_format(manifest):
        age = "a newer" if manifest.get("format", 1) > FORMAT else "an older"
        version = manifest.get("versions", {}).get("rosepo", "unknown version")
        raise UserError(f"{folder} was made by {age} rosepo ({version}) in a format that is not read here: {remedy}")


def of_this_format(manifest: Mapping[str, Any]) -> bool:
    """Whether the folder of a manifest is one that can be read."""
    return bool(manifest.get("format", 1) == FORMAT)
