"""The stages in order: what each reads, writes and depends on, and when it is up to date.

A stage's fingerprint is a digest of its settings and of the fingerprints of the stages that it reads, down to the
content of the data files. A folder whose manifest carries the fingerprint that is asked for is not made again.
"""

from __future__ import annotations

import importlib
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rosepo.artifacts import (
    MANIFEST,
    Outputs,
    copy_file,
    digest,
    git_revision,
    now,
    read_manifest,
    replacing,
    versions,
    write_json,
)
from rosepo.config import Config, dump_config, load_config
from rosepo.console import duration, say
from rosepo.errors import UserError

CONFIG_FILE = "config.yaml"
PUBLISHED = ("metrics.json", "report.html")
"""Files of the evaluation that also stand at the top of the run's folder."""
RESOURCE_KEYS = frozenset({"workers", "cpus_per_worker", "gpu", "actors", "cpus_per_actor", "log_every", "concurrent"})
"""Keys that change where and how fast the work is done, not its result: they do not make a stage stale."""

StageFunction = Callable[[Config, Outputs, Path], dict[str, Any]]


@dataclass(frozen=True)
class Stage:
    """One step of the pipeline.

    Attributes:
        name: the command.
        folder: where it writes, below the run's folder.
        needs: stages that must be there.
        uses: stages that are read where they are there.
        sections: parts of the configuration that its result depends on.
        function: `module:callable`, imported when it is run.
        purpose: what it does, for the person who watches.
    """

    name: str
    folder: str
    needs: tuple[str, ...]
    uses: tuple[str, ...]
    sections: tuple[str, ...]
    function: str
    purpose: str

    def load(self) -> StageFunction:
        """Import the function."""
        module, _, name = self.function.partition(":")
        function: StageFunction = getattr(importlib.import_module(module), name)
        return function


def _stage(name: str, folder: str, needs: str, sections: str, function: str, purpose: str, uses: str = "") -> Stage:
    return Stage(name, folder, tuple(needs.split()), tuple(uses.split()), tuple(sections.split()), function, purpose)


STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        _stage("prepare", "examples", "", "data prepare", "rosepo.data.prepare:prepare", "interactions to examples"),
        _stage(
            "sft",
            "sft",
            "prepare",
            "model sft",
            "rosepo.training.sft:sft",
            "fine-tune the language model on next titles",
        ),
        _stage(
            "oracle",
            "oracle",
            "prepare",
            "oracle",
            "rosepo.training.oracle:train_oracle",
            "train the preference oracle",
        ),
        _stage(
            "pairs", "groups", "prepare sft oracle", "pairs", "rosepo.sampling.pairs:pairs", "sample rejected titles"
        ),
        _stage(
            "align", "aligned", "prepare sft pairs", "align", "rosepo.training.align:align", "align with preferences"
        ),
        _stage(
            "sweep",
            "sweep",
            "prepare sft pairs",
            "align sweep",
            "rosepo.tuning.sweep:sweep",
            "search alignment settings",
        ),
        _stage(
            "evaluate",
            "evaluation",
            "prepare",
            "evaluate pairs.encoder pairs.semantic_decay",
            "rosepo.evaluation.evaluate:evaluate",
            "rank the catalogue, write the report",
            uses="sft oracle pairs align sweep",
        ),
    )
}


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
            `overwrite` is off, or an input is missing or was made by another configuration.
    """
    fingerprints: dict[str, str] = {}
    plans = []
    for stage in STAGES.values():
        folder = root / stage.folder
        manifest = read_manifest(folder)
        if stage.name not in names:
            if manifest is not None:
                fingerprints[stage.name] = manifest["fingerprint"]
            continue
        for need in stage.needs:
            if need not in names:
                _check_input(config, root, STAGES[need], stage)
        settings = stage_settings(config, stage)
        fingerprint = stage_fingerprint(config, stage, fingerprints)
        if manifest is not None and manifest["fingerprint"] == fingerprint:
            state = "done"
        elif manifest is None and folder.exists() and any(folder.iterdir()):
            raise UserError(
                f"{folder} holds files that no finished stage of rosepo wrote: move them away or use another --out"
            )
        elif manifest is not None and not overwrite:
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


def stage_settings(config: Config, stage: Stage) -> dict[str, Any]:
    """The settings that a stage's result depends on, flat: dotted key to value."""
    flat = _flatten(config.model_dump(mode="json"))
    searched = set(config.sweep_parameters) if stage.name == "sweep" else set()
    return {"seed": config.seed} | {
        key: value
        for key, value in flat.items()
        if any(f"{key}.".startswith(f"{section}.") for section in stage.sections)
        and key.rsplit(".", 1)[-1] not in RESOURCE_KEYS
        and key not in searched
    }


def stage_fingerprint(config: Config, stage: Stage, inputs: Mapping[str, str]) -> str:
    """Digest of a stage's settings and inputs; `inputs` holds the fingerprints of the stages that are there."""
    content: dict[str, Any] = {"stage": stage.name, "settings": stage_settings(config, stage)}
    content["inputs"] = {name: inputs[name] for name in (*stage.needs, *stage.uses) if name in inputs}
    if stage.name == "prepare":
        content["files"] = _data_digests(config)
    return digest(content)


def run_stages(config: Config, root: Path, names: Sequence[str], overwrite: bool = False) -> dict[str, dict[str, Any]]:
    """Run the named stages in pipeline order, passing over those that are up to date.

    Ray must be initialised. Returns the manifest of every named stage.

    Raises:
        UserError: see `plan_stages`; nothing was started then.
        StageError: a stage failed; its folder is as it was before.
    """
    plans = plan_stages(config, root, names, overwrite)
    root.mkdir(parents=True, exist_ok=True)
    (root / CONFIG_FILE).write_text(dump_config(config), encoding="utf-8")
    manifests = {}
    for number, plan in enumerate(plans, 1):
        label = f"[{number}/{len(plans)}] {plan.stage.name}"
        folder = root / plan.stage.folder
        if plan.state == "done":
            say(f"{label}: up to date → {folder}")
        else:
            say(f"{label}: {plan.stage.purpose}")
            manifest = _run_stage(config, root, plan)
            say(f"{label}: {duration(manifest['seconds'])} → {folder}")
        if plan.stage.name == "evaluate":
            for name in PUBLISHED:
                copy_file(folder / name, root / name)
        manifests[plan.stage.name] = read_manifest(folder) or {}
        _write_run_manifest(config, root)
    return manifests


def resolve_config(root: Path, path: Path | None, overrides: Sequence[str]) -> Config:
    """The configuration of a command: `path`, or the one kept in the run's folder, or the defaults; then overrides."""
    kept = root / CONFIG_FILE
    return load_config(path if path is not None else (kept if kept.is_file() else None), overrides)


def _run_stage(config: Config, root: Path, plan: Plan) -> dict[str, Any]:
    started = time.monotonic()
    inputs = Outputs(root)
    with replacing(root / plan.stage.folder) as aside:
        figures = plan.stage.load()(config, inputs, aside)
        names = (*plan.stage.needs, *plan.stage.uses)
        found = {name: read_manifest(root / STAGES[name].folder) for name in names}
        manifest = {
            "stage": plan.stage.name,
            "fingerprint": plan.fingerprint,
            "created": now(),
            "seconds": round(time.monotonic() - started, 2),
            "command": redact(" ".join(sys.argv)),
            "settings": stage_settings(config, plan.stage),
            "inputs": {name: found_manifest["fingerprint"] for name, found_manifest in found.items() if found_manifest},
            "files": _data_digests(config) if plan.stage.name == "prepare" else {},
            "figures": figures,
            "versions": versions(),
            "revision": git_revision(),
        }
        write_json(aside / MANIFEST, _redact_tree(manifest))
    return manifest


def _write_run_manifest(config: Config, root: Path) -> None:
    stages = {}
    for stage in STAGES.values():
        manifest = read_manifest(root / stage.folder)
        if manifest is not None:
            kept = {key: manifest[key] for key in ("fingerprint", "created", "seconds")}
            stages[stage.name] = {"manifest": f"{stage.folder}/{MANIFEST}", **kept}
    write_json(
        root / "manifest.json",
        _redact_tree(
            {
                "config": config.model_dump(mode="json", exclude_unset=True),
                "stages": stages,
                "seconds": round(sum(stage["seconds"] for stage in stages.values()), 2),
                "versions": versions(),
                "revision": git_revision(),
            }
        ),
    )


def _check_input(config: Config, root: Path, needed: Stage, stage: Stage) -> None:
    folder = root / needed.folder
    manifest = read_manifest(folder)
    if manifest is None:
        raise UserError(
            f"{stage.name} reads {folder}, which is not there: run `rosepo {needed.name}` or `rosepo run` first"
        )
    changed = _differences(manifest["settings"], stage_settings(config, needed))
    if changed:
        raise UserError(
            f"{stage.name} reads {folder}, which was made by another configuration ({'; '.join(changed[:4])}): "
            f"use that configuration, or run `rosepo {needed.name}` again"
        )


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    keys = sorted({*old, *new})
    return [f"{key}: {old.get(key)} → {new.get(key)}" for key in keys if _differ(old.get(key), new.get(key))]


def _differ(old: Any, new: Any) -> bool:
    return digest(_redact_tree(old)) != digest(_redact_tree(new))


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _data_digests(config: Config) -> dict[str, str]:
    from rosepo.data.digests import source_digests

    return source_digests(config.data)


def redact(text: str) -> str:
    """Text without the user name and password of a URL, and without values of secret-looking query keys."""
    text = re.sub(r"(\w+://)[^/@\s]+@", r"\1***@", text)
    return re.sub(r"(?i)((?:key|token|secret|password|signature|credential)[\w-]*=)[^&\s]+", r"\1***", text)


def _redact_tree(value: Any) -> Any:
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {key: _redact_tree(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_redact_tree(item) for item in value]
    return value
