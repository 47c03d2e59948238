"""Nothing is made twice: what runs on the same data with the same seed have in common.

Before a run starts, every stage that a sibling has finished under the very fingerprint that this run would give it is
hard-linked into its folder; what `rosepo run` then finds is up to date, by the rules that it has anyway. Stage folders
are never changed once they are finished, only replaced whole, so that one file may stand in many runs.

An evaluation itself is no sibling's, but ranks baselines and an SFT model that siblings have ranked already: their
rankings are put where the evaluation keeps unfinished work, and it takes over those whose origin is right.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from rosepo.experiments.runs import Run
from rosepo.pipeline.plan import RunPlan, StagePlan
from rosepo.run.folders import partial_folder, replacing
from rosepo.run.manifest import find_manifest
from rosepo.run.paths import RunPaths, of_round


def source_of(step: StagePlan, siblings: Iterable[Path]) -> Path | None:
    """The folder in which a sibling has finished this very stage; None where none has."""
    for sibling in siblings:
        folder = sibling / step.stage.folder
        manifest = find_manifest(folder)
        if manifest is not None and manifest["fingerprint"] == step.fingerprint:
            return folder
    return None


def link_finished(run: Run, plan: RunPlan) -> list[str]:
    """Take over what siblings have finished; returns the names of the stages that were linked."""
    linked, siblings = [], run.siblings()
    for step in plan.left:
        source = source_of(step, siblings)
        if source is None:
            continue
        target = run.folder / step.stage.folder
        with replacing(target) as aside:
            shutil.copytree(source, aside, copy_function=_link, dirs_exist_ok=True)
        shutil.rmtree(partial_folder(target, step.fingerprint), ignore_errors=True)
        linked.append(step.stage.name)
    return linked


def link_rankings(run: Run, plan: RunPlan) -> list[str]:
    """Lend the evaluation that is to be made the rankings of the same models by siblings; returns the models' names.

    It looks at the origin of what it finds, and makes again what has another.
    """
    from rosepo.evaluation.rankings import RANKINGS_FOLDER

    evaluation = plan["evaluate"]
    folder = partial_folder(run.folder / evaluation.stage.folder, evaluation.fingerprint) / RANKINGS_FOLDER
    wanted = {"popular": "prepare", "markov": "prepare", "oracle": "oracle", "sft": "sft"}
    wanted["aligned"] = of_round("align", evaluation.stage.round)
    found = []
    for sibling in run.siblings():
        manifest = find_manifest(RunPaths(sibling).evaluation)
        if manifest is None or manifest["settings"].get("evaluate.split") != run.split:
            continue
        for model, stage in wanted.items():
            source = RunPaths(sibling).evaluation / RANKINGS_FOLDER / f"{model}.parquet"
            same = all(manifest["inputs"].get(name) == evaluation.inputs.get(name) for name in ("prepare", stage))
            if same and model not in found and source.is_dir() and not (folder / source.name).exists():
                shutil.copytree(source, folder / source.name, copy_function=_link)
                found.append(model)
    return found


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copy2(source, target)
