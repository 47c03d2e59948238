"""Running what was planned (see planning.py): the stages in order, the manifest of each, and the report at the end."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rosepo.config import Config, located
from rosepo.pipeline.chosen_settings import choices_table
from rosepo.pipeline.kept_config import keeping_config
from rosepo.pipeline.plan import RunPlan, StagePlan
from rosepo.pipeline.planning import Planner, plan_again, plan_run
from rosepo.run.folders import continuing, partial_folder, replacing
from rosepo.run.manifest import FORMAT, MANIFEST, find_manifest, git_revision, versions
from rosepo.run.paths import RunPaths
from rosepo.run.stages import Stage, StageFunction, find_stage, paths_of, seconds_in_all, stages_of
from rosepo.utils.console import duration, echo
from rosepo.utils.errors import UserError
from rosepo.utils.files import now, write_json, write_text
from rosepo.utils.memory import MemoryMonitor
from rosepo.utils.redaction import command_line, redact_tree

Manifest = dict[str, Any]


def run_stages(plan: RunPlan) -> dict[str, Manifest]:
    """Make the stages of a plan that are not up to date. Ray must be initialised where there are any.

    Returns:
        The manifest of every stage of the plan, by name.

    Raises:
        UserError: a stage refused its settings or inputs, or another rosepo has written in the folder meanwhile.
        StageError: a stage failed; its folder is as it was before.
    """
    plan.root.mkdir(parents=True, exist_ok=True)
    manifests = dict(plan.manifests)
    with keeping_config(plan.asked, plan.root) as made:
        _run_part(plan, manifests, made)
        while plan.waits_for is not None:
            plan = plan_again(plan)
            _run_part(plan, manifests, made)
    return {step.stage.name: manifests[step.stage.name] for step in plan.stages}


def _run_part(plan: RunPlan, manifests: dict[str, Manifest], made: list[str]) -> None:
    """Make the stages of a plan up to the one that it waits for, passing over those that this command has `made`;
    their names and manifests are added."""
    left = [step.stage for step in plan.left if step.stage.name not in made]
    choices = [choice for choice in plan.choices if any(stage.depends_on(choice.key) for stage in left)]
    if choices:
        echo(f"settings that follow from the data, as nobody gave them\n{choices_table(choices)}")
    for number, step in enumerate(plan.stages, 1):
        name, folder = step.stage.name, plan.root / step.stage.folder
        label = f"[{number}/{len(plan.stages)}] {name}"
        if name in made:
            continue
        if step.state == "done":
            echo(f"{label}: up to date → {folder}")
        elif step in plan.streamed.values():
            echo(f"{label}: {step.stage.purpose}, streamed into the training that follows")
            continue
        else:
            new = _make(plan, step, label)
            made += new
            manifests |= new
            echo(f"{label}: {duration(new[name]['seconds'])} → {folder}")
        if name == "evaluate":
            _publish(plan, step)
        _write_run_manifest(plan, manifests)
        if name == plan.waits_for:
            return


def draw_report(config: Config, root: Path) -> Path:
    """Draw the report of a run that was evaluated; returns its HTML file.

    Raises:
        UserError: nothing was evaluated there, or what was measured has been made again since.
    """
    config = plan_run(config, root, ()).config
    evaluated = stages_of(config)["evaluate"]
    Planner(config, root).check_origin(evaluated, "report")
    return _draw(config, root, evaluated)


def _publish(plan: RunPlan, evaluated: StagePlan) -> None:
    """Put an evaluation's metrics and the report that is drawn of them at the top of the run's folder."""
    paths = RunPaths(plan.root)
    write_text(paths.metrics, (paths.evaluation / paths.metrics.name).read_text(encoding="utf-8"))
    if evaluated.state != "done" or not paths.report.is_file():
        _draw(plan.config, plan.root, evaluated.stage)


def _draw(config: Config, root: Path, evaluated: Stage) -> Path:
    from rosepo.report.run_report import write_report

    return write_report(located(config), paths_of(config, root.resolve(), evaluated))


def _make(plan: RunPlan, step: StagePlan, label: str) -> dict[str, Manifest]:
    """Run a stage, and with it the sampling that is streamed into it; returns their manifests by name."""
    pairs = plan.streamed.get(step.stage.name)
    if pairs is None:
        echo(f"{label}: {step.stage.purpose}")
        return {step.stage.name: _run_stage(plan, step)}
    from rosepo.pipeline.streaming import align_streamed

    echo(f"{label}: {step.stage.purpose}, while {pairs.stage.name} samples")
    made: dict[str, Manifest] = {}

    def sample(function: StageFunction) -> None:
        made[pairs.stage.name] = _run_stage(plan, pairs, function)

    def work(config: Config, paths: RunPaths, out: Path) -> dict[str, Any]:
        folder = partial_folder(paths.root / pairs.stage.folder, pairs.fingerprint)
        return align_streamed(config, paths, out, folder, sample)

    made[step.stage.name] = _run_stage(plan, step, work)
    return made


def _run_stage(plan: RunPlan, step: StagePlan, work: StageFunction | None = None) -> Manifest:
    """Run a stage, with `work` in place of its function where it is given; returns its manifest."""
    started = time.monotonic()
    stage, root = step.stage, plan.root.resolve()
    with (
        MemoryMonitor() as memory,
        continuing(root / stage.folder, step.fingerprint)
        if stage.in_parts
        else replacing(root / stage.folder) as aside,
    ):
        _check_unchanged(plan, step)
        figures = (work or stage.load())(located(plan.config), paths_of(plan.config, root, stage), aside)
        manifest: Manifest = redact_tree(
            {
                "format": FORMAT,
                "stage": stage.name,
                "fingerprint": step.fingerprint,
                "created": now(),
                "seconds": round(time.monotonic() - started, 2),
                **_memory(memory, figures),
                "command": command_line(),
                "settings": step.settings,
                "inputs": step.inputs,
                "files": step.files,
                "figures": figures,
                "versions": versions(),
                "revision": git_revision(),
            }
        )
        write_json(aside / MANIFEST, manifest)
    return manifest


def _check_unchanged(plan: RunPlan, step: StagePlan) -> None:
    """Refuse to run a stage where another process has written what it reads, or the stage itself, since the plan was
    made: a command may wait long for a cluster, or for its earlier stages.

    Raises:
        UserError: naming the folder.
    """
    stage, pairs = step.stage, plan.streamed.get(step.stage.name)
    expected = {name: step.inputs.get(name) for name in (*stage.needs, *stage.uses)} | {stage.name: step.found}
    for name, planned in expected.items():
        folder = plan.root / find_stage(name).folder
        there = (find_manifest(folder) or {}).get("fingerprint")
        if there != planned and not (pairs and name == pairs.stage.name):
            raise UserError(
                f"{folder} was written by another rosepo since this command began: run the same command again"
            )


def _memory(memory: MemoryMonitor, figures: Mapping[str, Any]) -> dict[str, int]:
    """Bytes that the stage took at most, as far as they can be known, and how many processes of this machine are in
    them; what its training workers say of themselves counts too, for they may be elsewhere."""
    told = int(figures.get("memory_mib", 0) * 2**20)
    on_gpu = figures.get("device") == "cuda"
    found = {"peak_memory": max(memory.peak, 0 if on_gpu else told), "processes": memory.processes}
    return found | ({"peak_gpu_memory": told} if on_gpu else {})


def _write_run_manifest(plan: RunPlan, manifests: Mapping[str, Manifest]) -> None:
    """`manifest.json` of the run's folder: the configuration, and the stages that are there in the order of work."""
    kept = ("fingerprint", "created", "seconds", "peak_memory")
    there = {name: stage for name, stage in stages_of(plan.config).items() if name in manifests}
    stages = {
        name: {"manifest": f"{stage.folder}/{MANIFEST}"}
        | {key: manifests[name][key] for key in kept if key in manifests[name]}
        for name, stage in there.items()
    }
    content = {
        "config": plan.asked.model_dump(mode="json", exclude_unset=True),
        "chosen": {choice.key: {"value": choice.value, "why": choice.why} for choice in plan.choices},
        "stages": stages,
        "seconds": round(seconds_in_all(manifests), 2),
        "versions": versions(),
        "revision": git_revision(),
    }
    write_json(plan.root / "manifest.json", redact_tree(content))
