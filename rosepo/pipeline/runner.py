"""Running the stages that are to be made (see planning.py), and the manifest of each."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rosepo.config import Config, dump_config, located
from rosepo.pipeline.fingerprints import file_digests, stage_settings
from rosepo.pipeline.planning import CONFIG_FILE, Plan, check_origin, plan_stages, streamed_plans
from rosepo.run.folders import continuing, partial_folder, replacing
from rosepo.run.manifest import MANIFEST, git_revision, read_manifest, versions
from rosepo.run.paths import RunPaths
from rosepo.run.stages import Stage, StageFunction, find_stage, seconds_in_all, stages_of
from rosepo.utils.console import duration, echo
from rosepo.utils.errors import UserError
from rosepo.utils.files import copy_file, now, write_json, write_text
from rosepo.utils.memory import MemoryMonitor
from rosepo.utils.redaction import command_line, redact_tree

METRICS_FILE = "metrics.json"
"""Of the evaluation; it also stands at the top of the run's folder."""


def run_stages(config: Config, root: Path, names: Sequence[str], overwrite: bool = False) -> dict[str, dict[str, Any]]:
    """Run the named stages in pipeline order, passing over those that are up to date.

    Ray must be initialised. Returns the manifest of every named stage.

    Raises:
        UserError: see `plan_stages`; nothing was started then.
        StageError: a stage failed; its folder is as it was before.
    """
    plans = plan_stages(config, root, names, overwrite)
    root.mkdir(parents=True, exist_ok=True)
    with _config_kept(config, root) as made:
        _make(config, root, plans, made)
    return {plan.stage.name: read_manifest(root / plan.stage.folder) or {} for plan in plans}


@contextmanager
def _config_kept(config: Config, root: Path) -> Iterator[list[str]]:
    """The run's `config.yaml`, with the names of the stages that are made under it. Where it is refused before there
    are any, the file is what it was: the next command would be refused too."""
    path = root / CONFIG_FILE
    before = path.read_text(encoding="utf-8") if path.is_file() else None
    write_text(path, dump_config(config))
    made: list[str] = []
    try:
        yield made
    except UserError:
        if before is not None and not made:
            write_text(path, before)
        raise


def _make(config: Config, root: Path, plans: Sequence[Plan], made: list[str]) -> None:
    """Run what is not done yet; `made` gets the names."""
    streamed = streamed_plans(config, plans)
    for number, plan in enumerate(plans, 1):
        label = f"[{number}/{len(plans)}] {plan.stage.name}"
        folder = root / plan.stage.folder
        if plan.state == "done":
            echo(f"{label}: up to date → {folder}")
        elif plan in streamed.values():
            echo(f"{label}: {plan.stage.purpose}, streamed into the training that follows")
            continue
        else:
            pairs = streamed.get(plan.stage.name)
            echo(f"{label}: {plan.stage.purpose}{f', while {pairs.stage.name} samples' if pairs else ''}")
            manifest = _run_streamed(config, root, pairs, plan) if pairs else _run_stage(config, root, plan)
            made.append(plan.stage.name)
            echo(f"{label}: {duration(manifest['seconds'])} → {folder}")
        if plan.stage.name == "evaluate":
            _publish(config, root, plan)
        _write_run_manifest(config, root)


def _publish(config: Config, root: Path, evaluated: Plan) -> None:
    """Put an evaluation's metrics and the report that is drawn of them at the top of the run's folder."""
    from rosepo.report.run_report import REPORT_FILE

    copy_file(root / evaluated.stage.folder / METRICS_FILE, root / METRICS_FILE)
    if evaluated.state != "done" or not (root / REPORT_FILE).is_file():
        draw_report(config, root)


def draw_report(config: Config, root: Path) -> Path:
    """Draw the report of a run that was evaluated; returns its HTML file.

    Raises:
        UserError: nothing was evaluated there, or what was measured has been made again since.
    """
    from rosepo.report.run_report import write_report

    stage = stages_of(config)["evaluate"]
    check_origin(root, stage, "report", set())
    return write_report(located(config), paths_of(config, root.resolve(), stage))


def paths_of(config: Config, root: Path, stage: Stage) -> RunPaths:
    """The run's folders as a stage sees them."""
    return RunPaths(root, stage.round, moved=config.pairs.reference == "moved")


def _run_streamed(config: Config, root: Path, pairs: Plan, align: Plan) -> dict[str, Any]:
    """Run the sampling of a round beside its alignment; returns the manifest of the latter."""
    from rosepo.pipeline.streaming import align_streamed

    def work(absolute: Config, paths: RunPaths, out: Path) -> dict[str, Any]:
        folder = partial_folder(paths.root / pairs.stage.folder, pairs.fingerprint)
        return align_streamed(absolute, paths, out, folder, lambda stage: _run_stage(config, root, pairs, stage))

    return _run_stage(config, root, align, work)


def _run_stage(config: Config, root: Path, plan: Plan, work: StageFunction | None = None) -> dict[str, Any]:
    """Run a stage, with `work` in place of its function where it is given; returns its manifest."""
    started = time.monotonic()
    root = root.resolve()
    inputs = paths_of(config, root, plan.stage)
    folder = root / plan.stage.folder
    with (
        MemoryMonitor() as memory,
        continuing(folder, plan.fingerprint) if plan.stage.in_parts else replacing(folder) as aside,
    ):
        figures = (work or plan.stage.load())(located(config), inputs, aside)
        names = (*plan.stage.needs, *plan.stage.uses)
        found = {name: read_manifest(root / find_stage(name).folder) for name in names}
        manifest = {
            "stage": plan.stage.name,
            "fingerprint": plan.fingerprint,
            "created": now(),
            "seconds": round(time.monotonic() - started, 2),
            **_memory(memory, figures),
            "command": command_line(),
            "settings": stage_settings(config, plan.stage),
            "inputs": {name: found_manifest["fingerprint"] for name, found_manifest in found.items() if found_manifest},
            "files": file_digests(config, plan.stage),
            "figures": figures,
            "versions": versions(),
            "revision": git_revision(),
        }
        write_json(aside / MANIFEST, redact_tree(manifest))
    return manifest


def _memory(memory: MemoryMonitor, figures: Mapping[str, Any]) -> dict[str, int]:
    """Bytes that the stage took at most, as far as they can be known, and how many processes of this machine are in
    them; what its training workers say of themselves counts too, for they may be elsewhere."""
    told = int(figures.get("memory_mib", 0) * 2**20)
    on_gpu = figures.get("device") == "cuda"
    found = {"peak_memory": max(memory.peak, 0 if on_gpu else told), "processes": memory.processes}
    return found | ({"peak_gpu_memory": told} if on_gpu else {})


def _write_run_manifest(config: Config, root: Path) -> None:
    stages, found = {}, {}
    for stage in stages_of(config).values():
        manifest = read_manifest(root / stage.folder)
        if manifest is not None:
            found[stage.name] = manifest
            kept = ("fingerprint", "created", "seconds", "peak_memory")
            stages[stage.name] = {"manifest": f"{stage.folder}/{MANIFEST}"} | {
                key: manifest[key] for key in kept if key in manifest
            }
    write_json(
        root / "manifest.json",
        redact_tree(
            {
                "config": config.model_dump(mode="json", exclude_unset=True),
                "stages": stages,
                "seconds": round(seconds_in_all(found), 2),
                "versions": versions(),
                "revision": git_revision(),
            }
        ),
    )
