"""What a command is to do, decided once and before any work: which stages are up to date, and which inputs are refused.

A stage's fingerprint is a digest of its settings and of the fingerprints of the stages that it reads, down to the
content of the data files. A folder whose manifest carries the fingerprint that is asked for is not made again.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from rosepo.config import Config
from rosepo.config.auto import open_keys
from rosepo.data.readers.digests import FileDigests
from rosepo.pipeline.chosen_settings import Choice, chosen_by_data, chosen_by_sweep
from rosepo.pipeline.fingerprints import files_read, fingerprint, stage_settings
from rosepo.pipeline.plan import RunPlan, StagePlan
from rosepo.run.manifest import REMADE, check_format, find_manifest, of_this_format
from rosepo.run.paths import of_round
from rosepo.run.stages import Stage, check_rounds, find_stage, stages_of
from rosepo.utils.errors import UserError
from rosepo.utils.files import digest
from rosepo.utils.redaction import redact_tree

_OVERWRITE = "use another --out, or --overwrite to make it again"
_SHOWN = 4
"""Differences that a message names."""


class Planner:
    """Plans stage by stage, from the manifests in a run's folder as they were when they were first asked for.

    Args: as of `plan_run`.
    """

    def __init__(self, config: Config, root: Path, overwrite: bool = False, digests: FileDigests | None = None) -> None:
        self.config, self.root, self.overwrite = config, root, overwrite
        self.digests = digests or FileDigests()
        self._manifests: dict[str, dict[str, Any] | None] = {}
        self._sound: set[str] = set()

    def find(self, stage: Stage) -> dict[str, Any] | None:
        """The manifest of a finished stage of whatever format, None where there is none."""
        if stage.name not in self._manifests:
            self._manifests[stage.name] = find_manifest(self.root / stage.folder)
        return self._manifests[stage.name]

    def read(self, stage: Stage, remedy: str = REMADE) -> dict[str, Any] | None:
        """The same, of this format.

        Raises:
            UserError: see `check_format`.
        """
        manifest = self.find(stage)
        if manifest is not None:
            check_format(manifest, self.root / stage.folder, remedy)
        return manifest

    def check_input(self, needed: Stage, reader: str) -> None:
        """Refuse what the stage `needed` left where it is not there, or not of this configuration and its inputs.

        Args:
            reader: the stage that reads it.

        Raises:
            UserError: naming the folder and what differs.
        """
        folder, manifest = self.root / needed.folder, self.read(needed)
        if manifest is None:
            raise UserError(
                f"{reader} reads {folder}, which is not there: run `rosepo {needed.command}` or `rosepo run` first"
            )
        changed = differences(manifest["settings"], stage_settings(self.config, needed))
        if needed.name != "prepare":  # the log may be gone by now, and its examples do
            changed += differences(manifest["files"], self.digests.of(files_read(self.config, needed)))
        if changed:
            raise UserError(
                f"{reader} reads {folder}, which was made by another configuration ({'; '.join(changed[:_SHOWN])}): "
                f"use that configuration, or run `rosepo {needed.command}` again"
            )
        self.check_origin(needed, reader)

    def check_origin(self, stage: Stage, reader: str) -> None:
        """Refuse what a stage left where it was made from something else than what stands in the run's folder now,
        however far back.

        Args:
            reader: the stage or command that reads it.

        Raises:
            UserError: naming the folder that is stale and the one that was made again.
        """
        if stage.name in self._sound:
            return
        self._sound.add(stage.name)
        manifest = self.read(stage) or {}
        for name, made_from in manifest.get("inputs", {}).items():
            source = find_stage(name)
            now_there = self.read(source)
            if now_there is not None and now_there["fingerprint"] != made_from:
                raise UserError(
                    f"{reader} reads {self.root / stage.folder}, which was made before {self.root / source.folder} was "
                    f"made again: run `rosepo {stage.command} --overwrite`, or `rosepo run --overwrite`, first"
                )
            self.check_origin(source, reader)

    def plan(self, stage: Stage, fingerprints: Mapping[str, str], wanted: Collection[str]) -> StagePlan:
        """What is to be done for a stage.

        Args:
            fingerprints: of those before it, as they will be by then.
            wanted: names of those that the command makes.
        """
        self._check_inputs(stage, wanted)
        folder, settings = self.root / stage.folder, stage_settings(self.config, stage)
        inputs = {name: fingerprints[name] for name in (*stage.needs, *stage.uses) if name in fingerprints}
        files = self.digests.of(files_read(self.config, stage))
        manifest = self.find(stage) if self.overwrite else self.read(stage, _OVERWRITE)
        asked = fingerprint(stage, settings, inputs, files)
        if manifest is None:
            if folder.exists() and any(folder.iterdir()):
                raise UserError(
                    f"{folder} holds files that no finished stage of rosepo wrote: move them away or use another --out"
                )
            return StagePlan(stage, "missing", settings, inputs, files, asked, None)
        found = manifest["fingerprint"]
        plan = StagePlan(stage, "done" if found == asked else "replace", settings, inputs, files, asked, found)
        if plan.state == "replace" and not self.overwrite and not _only_adds(manifest, plan):
            changed = differences(manifest["settings"], settings) or ["what it was made from"]
            raise UserError(f"{folder} was made by another configuration ({'; '.join(changed[:_SHOWN])}): {_OVERWRITE}")
        return plan

    def _check_inputs(self, stage: Stage, wanted: Collection[str]) -> None:
        """Refuse what a stage reads and this command does not make, where it is not what the stage would read."""
        remedy = "use another --out, or move it away" if self.overwrite else REMADE
        for name in (*stage.needs, *stage.uses):
            if name in wanted:
                continue
            needed = find_stage(name)
            there = self.read(needed, remedy) is not None
            # An old sweep is only told about: it may be of other settings.
            if name != "sweep" and (there or name in stage.needs):
                self.check_input(needed, stage.name)


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs between two mappings of which the first was read from a manifest, `key: old → new`."""
    keys = sorted({*old, *new})
    return [f"{key}: {old.get(key)} → {new.get(key)}" for key in keys if differ(old.get(key), new.get(key))]


def differ(old: Any, new: Any) -> bool:
    """Whether two values differ in what a manifest holds of them."""
    return digest(redact_tree(old)) != digest(redact_tree(new))


def plan_run(
    config: Config,
    root: Path,
    names: Sequence[str],
    overwrite: bool = False,
    digests: FileDigests | None = None,
) -> RunPlan:
    """Decide which of the named stages are up to date; with `pairs.stream` an alignment brings the sampling along that
    it trains on, where that is not there.

    Args:
        overwrite: what was made by another configuration may be made again.
        digests: of a command that plans several runs; None for one of its own.

    Raises:
        UserError: a folder holds something else than an output of rosepo, or was made by a rosepo of another format or
            by another configuration and `overwrite` is off (an evaluation may get systems of others beside those that
            it has); an input is missing or was made by another configuration; or a round is not one of `pairs.rounds`.
    """
    _check_root(root)
    check_rounds(config, names)
    planner = Planner(config, root, overwrite, digests)
    wanted = {*names, *_streamed_with(planner, names)}
    plans: list[StagePlan] = []
    manifests: dict[str, dict[str, Any]] = {}
    fingerprints: dict[str, str] = {}
    choices: tuple[Choice, ...] = ()
    waits_for: str | None = None
    for name in stages_of(config):
        stage = stages_of(planner.config)[name]
        found = planner.find(stage)
        if found is not None and of_this_format(found):
            manifests[name] = found
            fingerprints[name] = found["fingerprint"]
        if name in wanted:
            plans.append(planner.plan(stage, fingerprints, wanted))
            fingerprints[name] = plans[-1].fingerprint
        made = manifests.get(name) if name not in wanted or plans[-1].state == "done" else None
        if name == "prepare":
            planner.config, choices = chosen_by_data(planner.config, made)
            decides = bool(open_keys(planner.config))
        else:
            decides = name == "sweep" and bool(planner.config.sweep.trials)
            if decides and made is not None:
                planner.config = _go_by_sweep(planner, made, wanted)
        if decides and made is None and name in wanted and waits_for is None:
            waits_for = name
    return RunPlan(
        asked=config,
        config=planner.config,
        choices=choices,
        root=root,
        stages=tuple(plans),
        manifests=manifests,
        waits_for=waits_for,
        names=tuple(names),
        overwrite=overwrite,
        digests=planner.digests,
    )


def plan_again(plan: RunPlan) -> RunPlan:
    """The same, now that more is there."""
    return plan_run(plan.asked, plan.root, plan.names, plan.overwrite, plan.digests)


def _go_by_sweep(planner: Planner, made: Mapping[str, Any], wanted: Collection[str]) -> Config:
    """The configuration with the best settings of a sweep that is there, by its manifest; as it was where that was made
    by another configuration and nothing is to be aligned.

    Raises:
        UserError: an alignment would go by a sweep of another configuration.
    """
    stage = find_stage("sweep")
    if "sweep" not in wanted:
        if any(find_stage(name).kind == "align" for name in wanted):
            planner.check_input(stage, "align")
        elif differences(made["settings"], stage_settings(planner.config, stage)):
            return planner.config
    return chosen_by_sweep(planner.config, made)


def _streamed_with(planner: Planner, names: Sequence[str]) -> list[str]:
    """With `pairs.stream`, the sampling of groups that a named alignment trains on and that are not there."""
    alignments = [stage for stage in map(find_stage, names) if stage.kind == "align"]
    sampling = [of_round("pairs", stage.round) for stage in alignments if planner.config.pairs.stream]
    return [name for name in sampling if planner.find(find_stage(name)) is None]


def _only_adds(manifest: Mapping[str, Any], plan: StagePlan) -> bool:
    """Whether an evaluation would measure what it measured, and systems of others beside: nothing is lost then."""
    if plan.stage.kind != "evaluate":
        return False
    old, new = manifest["settings"], plan.settings
    added = [key for key in new if key not in old]  # what models of others are read with
    lists = ("evaluate.models", "evaluate.predictions")
    same = all(not differ(old[key], new.get(key)) for key in old if key not in lists)
    kept = all(set(old.get(key, ())) <= set(new[key]) for key in lists)
    plain = all(key in lists or key.startswith("model.") for key in added)
    files = manifest["files"].items() <= plan.files.items()
    return same and kept and plain and files and manifest["inputs"] == plan.inputs


def _check_root(root: Path) -> None:
    # Unlike Path.exists, this takes what lies in a folder that may not be entered for not there.
    there = next(folder for folder in (root, *root.absolute().parents) if os.access(folder, os.F_OK))
    if not there.is_dir():
        raise UserError(f"--out {root}: {there} is a file, not a folder: use another --out")
    try:
        tempfile.TemporaryFile(dir=there).close()  # without a name: nobody sees it
    except OSError as error:
        raise UserError(f"--out {root}: {there} cannot be written to: use another --out ({error.strerror})") from error
