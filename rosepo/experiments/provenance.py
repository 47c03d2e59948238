"""Where results come from: what a system cost, and how often the test split was measured.

Whoever measures on test, changes a setting and measures again has chosen on test. Nothing can keep people from that;
that it is told in the results can be seen to: a line each in a file that is only added to.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rosepo.experiments.runs import Run
from rosepo.report.cost import total_of
from rosepo.run.stages import find_stage, seconds_in_all
from rosepo.utils.files import now

TEST_LOG = "test-looks.jsonl"


def cost(run: Run, model: str) -> dict[str, float]:
    """Seconds of a model's own stages and of all that it rests on, tokens that it was trained on, bytes at the most."""
    of_kinds = {
        "aligned": (("pairs", "align"), ("prepare", "sft", "oracle")),
        "sft": (("sft",), ("prepare",)),
        "oracle": (("oracle",), ("prepare",)),
    }
    own, below = (
        {name: made for name, made in run.manifests.items() if find_stage(name).kind in kinds}
        for kinds in of_kinds.get(model, ((), ()))
    )
    trained = {name: made for name, made in own.items() if find_stage(name).kind in ("sft", "align")}
    return {
        "own_seconds": seconds_in_all(own),
        "seconds": seconds_in_all(own | below),
        "tokens": total_of(trained).tokens or 0,
        "memory": total_of(own).memory or 0,
    }


def record_look(run: Run, fingerprint: str) -> None:
    """Note, once, that a run was evaluated on test; `fingerprint` is that of its evaluation."""
    if any((look["run"], look["fingerprint"]) == (run.label, fingerprint) for look in _looks(run.out)):
        return
    with (run.out / TEST_LOG).open("a", encoding="utf-8") as file:
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
        lines = (out / TEST_LOG).read_text(encoding="utf-8").splitlines()
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
