"""Where results come from: what made the runs, what a system cost, and how often the test split was measured.

Whoever measures on test, changes a setting and measures again has chosen on test. Nothing can keep people from that;
that it is told in the results can be seen to: a line each in a file that is only added to.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rosepo.experiments.runs import Run
from rosepo.pipeline.planning import resolve_config
from rosepo.run.manifest import read_manifest
from rosepo.run.stages import find_stage, seconds_in_all, stages_of
from rosepo.utils.files import now

TEST_LOG = "test-looks.jsonl"


def made_by(runs: Sequence[Run]) -> dict[str, Any]:
    """`versions` of the libraries and `revisions` of rosepo that the runs' stages were made by, which need not be those
    that write the tables: a value each, or all that there are."""
    used: dict[str, set[str]] = {}
    revisions: set[str] = set()
    for run in runs:
        for stage in stages_of(resolve_config(run.folder, None, [])).values():
            manifest = read_manifest(run.folder / stage.folder) or {}
            revisions |= {manifest["revision"]} if manifest.get("revision") else set()
            for name, version in manifest.get("versions", {}).items():
                used.setdefault(name, set()).add(version)
    return {
        "versions": {name: " and ".join(sorted(found)) for name, found in used.items()},
        "revisions": sorted(revisions),
    }


def cost(run: Run, model: str) -> dict[str, float]:
    """Seconds of a model's own stages and of all that it rests on, tokens that it was trained on, bytes at the most."""
    config = resolve_config(run.folder, None, [])
    read = {name: read_manifest(run.folder / stage.folder) for name, stage in stages_of(config).items()}
    manifests = {name: manifest for name, manifest in read.items() if manifest is not None}
    kinds = {"aligned": ("pairs", "align"), "sft": ("sft",), "oracle": ("oracle",)}.get(model, ())
    below = {"aligned": ("prepare", "sft", "oracle"), "sft": ("prepare",), "oracle": ("prepare",)}.get(model, ())
    own = {name: manifest for name, manifest in manifests.items() if find_stage(name).kind in kinds}
    rest = {name: manifest for name, manifest in manifests.items() if find_stage(name).kind in below}
    tokens = [own[name]["figures"].get("tokens", 0) for name in own if find_stage(name).kind in ("sft", "align")]
    memory = [manifest.get("peak_memory") or 0 for manifest in own.values()]
    seconds = {"own_seconds": seconds_in_all(own), "seconds": seconds_in_all({**own, **rest})}
    return seconds | {"tokens": sum(tokens), "memory": max(memory, default=0)}


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
