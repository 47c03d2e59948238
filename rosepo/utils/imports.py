"""Parts of one's own, named in the configuration by an import path, `module:callable`."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rosepo.utils.errors import UserError


def find_callable(path: str, key: str) -> Callable[..., Any]:
    """The callable behind `module:callable`.

    Args:
        path: as the configuration has it.
        key: of the configuration, for messages.

    Raises:
        UserError: no such module or callable.
    """
    module, _, name = path.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as error:  # what a module does while it is imported may fail in any way
        raise UserError(
            f"{key}: {path} cannot be imported: {type(error).__name__}: {error}; "
            "its module must be found by Python in every process (PYTHONPATH, or an installed package)"
        ) from error
    if not callable(found):
        raise UserError(f"{key}: {path} is {type(found).__name__} and not a callable")
    made: Callable[..., Any] = found
    return made


def module_file(path: str) -> Path | None:
    """The file behind the module of `module:callable`; None where there is none."""
    try:
        spec = importlib.util.find_spec(path.partition(":")[0])
    except (ImportError, ValueError):
        return None
    file = Path(spec.origin) if spec is not None and spec.has_location and spec.origin else None
    return file if file is not None and file.is_file() else None
