"""What the manifests of runs tell beside their figures: what a system cost, and by what it was made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rosepo.experiments.runs import Run
from rosepo.pipeline.planning import resolve_config
from rosepo.run.manifest import read_manifest
from rosepo.run.stages import find_stage, seconds_in_all, stages_of


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
