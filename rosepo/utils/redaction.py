"""What must not reach logs and manifests: passwords in URLs, values of secret-looking keys."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_SECRET = "key|token|secret|password|signature|credential"


def redact(text: str) -> str:
    """Text without the user name and password of a URL, and without values of secret-looking query keys."""
    # Up to the last @: secret keys of object stores may hold slashes.
    text = re.sub(r"(\w+://)(?:[^/@\s]+|[^:/@\s]*:\S*)@", r"\1***@", text)
    return re.sub(rf"(?i)([?&][\w-]*(?:{_SECRET})[\w-]*=|\b(?:\w+_)?(?:{_SECRET})=)[^&\s]+", r"\1***", text)


def command_line() -> str:
    """The command that runs, as it can be typed again, without secrets."""
    program = Path(sys.argv[0]).name
    if program in ("rosepo", "__main__.py"):
        words = ["rosepo"]
    else:
        words = ["python", sys.argv[0]] if program.endswith(".py") else [sys.argv[0]]
    return shlex.join(redact(word) for word in (*words, *sys.argv[1:]))


def redact_tree(value: Any) -> Any:
    """The same for every text in a nest of mappings and lists."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {key: redact_tree(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [redact_tree(item) for item in value]
    return value
