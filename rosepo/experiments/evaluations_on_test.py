"""Looks at the test split, one line each in a file that is only added to.

Whoever looks, changes a setting and looks again has chosen on test. Nothing can keep people from that; that it is told
in the results can be seen to.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rosepo.experiments.runs import Run
from rosepo.utils.files import now

FILE = "test-looks.jsonl"


def record_look(run: Run, fingerprint: str) -> None:
    """Note, once, that a run was evaluated on test; `fingerprint` is that of its evaluation."""
    if any((look["run"], look["fingerprint"]) == (run.label, fingerprint) for look in _looks(run.out)):
        return
    with (run.out / FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps({"at": now(), "run": run.label, "fingerprint": fingerprint}) + "\n")


def looked_at(out: Path) -> dict[str, dict[str, Any]]:
    """Run to the time of its `first` look and the number of different `settings` that it was looked at with."""
    found: dict[str, list[dict[str, str]]] = {}
    for look in _looks(out):
        found.setdefault(look["run"], []).append(look)
    return {
        run: {"first": looks[0]["at"], "settings": len({look["fingerprint"] for look in looks})}
        for run, looks in found.items()
    }


def _looks(out: Path) -> list[dict[str, str]]:
    try:
        lines = (out / FILE).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    found = []
    for line in lines:
        try:
            look = json.loads(line)
            found.append({key: str(look[key]) for key in ("at", "run", "fingerprint")})
        except (ValueError, KeyError, TypeError):
            continue  # cut off, by a full disk say
    return found
