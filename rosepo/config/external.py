"""Systems that are evaluated beside the run's own: entries `LOCATION` or `NAME=LOCATION`, and what they are called."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from rosepo.config.base import refuse_credentials

OWN = ("popular", "markov", "oracle", "sft", "aligned")
"""A run's own systems, in the order in which they are told."""
_TAKEN = (*OWN, "truth")
_ENDINGS = re.compile(r"(\.(parquet|pq|csv|tsv|jsonl|ndjson|json|gz|bz2|zst|lz4))+$", re.IGNORECASE)


@dataclass(frozen=True)
class ExternalSystem:
    """A system that is not the run's own.

    Attributes:
        name: letters, digits, `_`, `.` and `+`; in names of differences `-` stands between two of them.
        location: of a model a folder or hub id, of predictions a file, folder or glob.
        kind: `models` or `predictions`, the key of `evaluate` that has it.
    """

    name: str
    location: str
    kind: str

    @property
    def key(self) -> str:
        """Of the configuration, for messages."""
        return f"evaluate.{self.kind}"


def external_systems(models: Sequence[str], predictions: Sequence[str]) -> dict[str, ExternalSystem]:
    """The systems by name, in order.

    Raises:
        ValueError: a name that cannot be told from the location, that has other characters, or that two systems have.
    """
    found: dict[str, ExternalSystem] = {}
    entries = [("models", entry) for entry in models] + [("predictions", entry) for entry in predictions]
    for kind, entry in entries:
        named = re.fullmatch(r"([^/:=]*)=(.*)", entry)  # no name where a `=` stands further down in a path or URL
        if named and not (re.fullmatch(r"[\w.+]+", named[1]) and named[2]):
            raise ValueError(
                f"evaluate.{kind}: {entry!r} is not NAME=LOCATION, with letters, digits, '_', '.' and '+' in the name "
                f"(a location that has '=' itself: ./{entry})"
            )
        location = named[2] if named else entry
        refuse_credentials(f"evaluate.{kind}", location)
        name = named[1] if named else _name_of(location, kind)
        if not name:
            raise ValueError(f"evaluate.{kind}: {entry!r} tells no name: write NAME={entry}")
        other = found.get(name)
        if name in _TAKEN or other is not None:
            whose = "the run's own" if other is None else f"{other.location}, too"
            raise ValueError(
                f"evaluate.{kind}: {location} would be called '{name}', which is {whose}: give it another name, "
                f"NAME={location}"
            )
        found[name] = ExternalSystem(name, location, kind)
    return found


def _name_of(location: str, kind: str) -> str:
    """The last part of a location without endings; of a model that a run wrote, behind the run's name."""
    parts = [part for part in location.rstrip("/").split("/") if part not in ("", ".", "..")]
    if not parts:
        return ""
    name = _ENDINGS.sub("", parts[-1])
    if kind == "models" and re.fullmatch(r"sft|aligned(-\d+)?", name) and len(parts) > 1:
        name = f"{parts[-2]}_{name}"
    return re.sub(r"[^\w.+]+", "_", name).strip("_.")
