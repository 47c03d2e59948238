"""What is to be done: which stages are up to date, and whether what they read is there and of the same making.

A stage's fingerprint is a digest of its settings and of the fingerprints of the stages that it reads, down to the
content of the data files. A folder whose manifest carries the fingerprint that is asked for is not made again.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rosepo.config import Config, load_config
from rosepo.pipeline.fingerprints import file_digests, stage_fingerprint, stage_settings
from rosepo.run.manifest import read_manifest
from rosepo.run.paths import RunPaths, of_round
from rosepo.run.stages import Stage, check_rounds, find_stage, stages_of
from rosepo.utils.errors import UserError
from rosepo.utils.files import digest
from rosepo.utils.redaction import redact_tree

CONFIG_FILE = "config.yaml"


@dataclass(frozen=True)
class Plan:
    """What is to be done for one stage: `state` is `done`, `missing` or `replace`."""

    stage: Stage
    fingerprint: str
    state: str


def plan_stages(config: Config, root: Path, names: Sequence[str], overwrite: bool) -> list[Plan]:
    """Decide, before any work, which of the named stages (in pipeline order) are up to date.

    Raises:
        UserError: a folder holds something else than an output of rosepo, was made by another configuration and
            `overwrite` is off (an evaluation may get systems of others beside those that it has), an input is missing
            or was made by another configuration, or a round is not one of `pairs.rounds`.
    """
    _check_root(root)
    check_rounds(config, names)
    names = with_streamed(config, root, names)
    fingerprints: dict[str, str] = {}
    looked_at: set[str] = set()
    plans = []
    for stage in stages_of(config).values():
        folder = root / stage.folder
        manifest = read_manifest(folder)
        if stage.name not in names:
            if manifest is not None:
                fingerprints[stage.name] = manifest["fingerprint"]
            continue
        for name in (*stage.needs, *_read_where_there(root, stage)):
            if name not in names:
                _check_input(config, root, find_stage(name), stage, looked_at)
        settings = stage_settings(config, stage)
        fingerprint = stage_fingerprint(config, stage, fingerprints)
        if manifest is not None and manifest["fingerprint"] == fingerprint:
            state = "done"
        elif manifest is None and folder.exists() and any(folder.iterdir()):
            raise UserError(
                f"{folder} holds files that no finished stage of rosepo wrote: move them away or use another --out"
            )
        elif manifest is not None and not overwrite and not _only_adds(config, stage, manifest, fingerprints):
            changed = _differences(manifest["settings"], settings) or ["what it was made from"]
            raise UserError(
                f"{folder} was made by another configuration ({'; '.join(changed[:4])}): "
                "use another --out, or --overwrite to make it again"
            )
        else:
            state = "missing" if manifest is None else "replace"
        fingerprints[stage.name] = fingerprint
        plans.append(Plan(stage, fingerprint, state))
    return plans


def _only_adds(config: Config, stage: Stage, manifest: Mapping[str, Any], fingerprints: Mapping[str, str]) -> bool:
    """Whether an evaluation would measure what it measured, and systems of others beside: nothing is lost then."""
    if stage.kind != "evaluate":
        return False
    old, new = manifest["settings"], stage_settings(config, stage)
    added = [key for key in new if key not in old]  # what models of others are read with
    lists = ("evaluate.models", "evaluate.predictions")
    same = all(not _differ(old[key], new.get(key)) for key in old if key not in lists)
    kept = all(set(old.get(key, ())) <= set(new[key]) for key in lists)
    files = manifest.get("files", {}).items() <= file_digests(config, stage).items()
    inputs = {name: fingerprints[name] for name in (*stage.needs, *stage.uses) if name in fingerprints}
    plain = all(key in lists or key.startswith("model.") for key in added)
    return same and kept and files and plain and inputs == manifest["inputs"]


def with_streamed(config: Config, root: Path, names: Sequence[str]) -> list[str]:
    """The named stages, and with `pairs.stream` the sampling of groups that a named alignment trains on and that are
    not there."""
    found = set(names)
    for name in names if config.pairs.stream else ():
        stage = find_stage(name)
        if stage.kind == "align" and read_manifest(RunPaths(root, stage.round).groups) is None:
            found.add(of_round("pairs", stage.round))
    return [*sorted(found - set(names)), *names]


def streamed_plans(config: Config, plans: Sequence[Plan]) -> dict[str, Plan]:
    """Plans of sampling that is done while its groups are trained on, by the name of the alignment."""
    left = {plan.stage.name: plan for plan in plans if plan.state != "done"}
    rounds = {name: of_round("pairs", plan.stage.round) for name, plan in left.items() if plan.stage.kind == "align"}
    return {name: left[pairs] for name, pairs in rounds.items() if pairs in left} if config.pairs.stream else {}


def resolve_config(root: Path, path: Path | None, overrides: Sequence[str]) -> Config:
    """The configuration of a command: `path`, or the one kept in the run's folder, or the defaults; then overrides."""
    kept = root / CONFIG_FILE
    return load_config(path if path is not None else (kept if kept.is_file() else None), overrides)


def _check_input(config: Config, root: Path, needed: Stage, stage: Stage, looked_at: set[str]) -> None:
    folder = root / needed.folder
    manifest = read_manifest(folder)
    if manifest is None:
        raise UserError(
            f"{stage.name} reads {folder}, which is not there: run `rosepo {needed.command}` or `rosepo run` first"
        )
    changed = _differences(manifest["settings"], stage_settings(config, needed))
    if needed.name != "prepare":  # the log may be gone by now, and its examples do
        changed += _differences(manifest.get("files", {}), file_digests(config, needed))
    if changed:
        raise UserError(
            f"{stage.name} reads {folder}, which was made by another configuration ({'; '.join(changed[:4])}): "
            f"use that configuration, or run `rosepo {needed.command}` again"
        )
    check_origin(root, needed, stage.name, looked_at)


def check_origin(root: Path, needed: Stage, reader: str, looked_at: set[str]) -> None:
    """Refuse an input that was made from something else than what stands in the run's folder now, however far back.

    Args:
        reader: the command that reads what the stage `needed` left.
        looked_at: names of stages that need no second look; those that were looked at are added.
    """
    if needed.name in looked_at:
        return
    looked_at.add(needed.name)
    manifest = read_manifest(root / needed.folder) or {}
    for name, fingerprint in manifest.get("inputs", {}).items():
        source = find_stage(name)
        now_there = read_manifest(root / source.folder)
        if now_there is not None and now_there["fingerprint"] != fingerprint:
            raise UserError(
                f"{reader} reads {root / needed.folder}, which was made before {root / source.folder} was made "
                f"again: run `rosepo {needed.command} --overwrite`, or `rosepo run --overwrite`, first"
            )
        check_origin(root, source, reader, looked_at)


def _read_where_there(root: Path, stage: Stage) -> list[str]:
    """Stages that `stage` reads if they are there. An old sweep is only told about: it may be of other settings."""
    return [
        name for name in stage.uses if name != "sweep" and read_manifest(root / find_stage(name).folder) is not None
    ]


def _check_root(root: Path) -> None:
    # Unlike Path.exists, this takes what lies in a folder that may not be entered for not there.
    there = next(folder for folder in (root, *root.absolute().parents) if os.access(folder, os.F_OK))
    if not there.is_dir():
        raise UserError(f"--out {root}: {there} is a file, not a folder: use another --out")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"--out {root}: {there} cannot be written to: use another --out")


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    keys = sorted({*old, *new})
    return [f"{key}: {old.get(key)} → {new.get(key)}" for key in keys if _differ(old.get(key), new.get(key))]


def _differ(old: Any, new: Any) -> bool:
    return digest(redact_tree(old)) != digest(redact_tree(new))
