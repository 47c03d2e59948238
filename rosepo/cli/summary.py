"""What a person reads when the work is done: results, times, where things are, what to run next."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rosepo.config import Config
from rosepo.pipeline.chosen_settings import written
from rosepo.pipeline.plan import RunPlan
from rosepo.report.text.conclusions import verdict
from rosepo.report.text.format import brackets, measured, number
from rosepo.report.text.labels import label
from rosepo.run.paths import RunPaths, of_round
from rosepo.run.stages import Stage, find_stage, seconds_in_all, together_with
from rosepo.utils.console import duration, echo, table
from rosepo.utils.redaction import redact

Manifests = Mapping[str, Mapping[str, Any]]
SHOWN = ("hr@1", "hr@10", "ndcg@10")
ANSWERS = {
    "hr@1": "HR@1",
    "hr@1_valid": "HR@1 of valid",
    "valid_ratio": "ValidRatio",
    "hr@1_substring": "substring: HR@1",
    "hr@1_substring_valid": "of valid",
    "valid_ratio_substring": "ValidRatio",
}
_TELLING = ("model.scratch.hidden_size", "model.scratch.whole_titles", "sft.epochs", "align.epochs", "align.loss")
"""Keys of settings that follow from the data of which the summary tells the values."""
_NEXT = {
    "prepare": ("sft", "oracle"),
    "sft": ("oracle", "pairs"),
    "oracle": ("pairs",),
    "pairs": ("align", "sweep"),
    "align": ("evaluate",),
    "sweep": ("evaluate",),
}


def print_summary(plan: RunPlan, manifests: Manifests) -> None:
    """One screen of a finished run: its data, what was chosen, results, verdict, times, paths, what to do next.

    Args:
        manifests: of the plan's stages, by name.
    """
    rounds = plan.config.pairs.rounds
    paths = RunPaths(plan.root, rounds)
    metrics = json.loads(paths.metrics.read_text(encoding="utf-8"))
    parts = [
        "\n".join(filter(None, [_data(plan, manifests), _chosen(plan)])),
        _results(paths),
        *([rounds_table(rounds, manifests)] if rounds > 1 else []),
        "\n".join(f"  {sentence}" for sentence in _said(plan, paths, metrics, manifests)),
        _times(plan, manifests),
        f"  Report   {paths.report}  (open it in a browser; report.md and metrics.json beside it)\n"
        f"  Model    {paths.aligned}  (loads in plain Transformers)",
        "\n    ".join(["  Try next:", *_suggestions(plan, paths)]),
    ]
    echo("\n" + "\n\n".join(parts))


def _data(plan: RunPlan, manifests: Manifests) -> str:
    figures = manifests["prepare"]["figures"]
    counts = [f"{figures[key]:,} {key}" for key in ("users", "items", "interactions") if key in figures]
    named = plan.config.data.dataset or plan.config.data.interactions or "prepared examples"
    return f"  Data     {redact(named)}: {', '.join(counts)}"


def _chosen(plan: RunPlan) -> str:
    """What followed from the data, the settings that matter most by their values."""
    if not plan.choices:
        return ""
    shown = [f"{one.key}={written(one.value)}" for one in plan.choices if one.key in _TELLING]
    return (
        f"  Chosen   {', '.join(shown)} ({len(plan.choices)} settings follow from the data: {plan.root}/manifest.json)"
    )


def _said(plan: RunPlan, paths: RunPaths, metrics: Mapping[str, Any], manifests: Manifests) -> list[str]:
    """The verdict's sentences, and what to mend first."""
    from rosepo.report.run_report import advice_on

    mend = advice_on(plan.config, paths, metrics, manifests)
    return [*verdict(metrics).sentences, *(f"→ {sentence}" for sentence in mend)]


def results_table(metrics: dict[str, Any]) -> str:
    """Models against metrics, each with its 95 % interval, as text."""
    among = ", every example among its own candidates" if metrics.get("protocol") == "candidates" else ""
    n = f"{metrics['n_examples']:,} examples of {metrics['n_users']:,} users"
    rows = [
        [label(name, metrics), *(brackets(figures[key], signed=False) for key in SHOWN)]
        for name, figures in metrics["models"].items()
    ]
    shown = table(rows, header=("model", *(key.upper() for key in SHOWN)))
    return f"  {metrics['split']} split, {n}, 95 % intervals{among}\n{shown}"


def candidates_table(figures: Mapping[str, Any]) -> str:
    """Free answers among listed candidates as text: models with their intervals, and the probes beside them."""

    def cell(figure: Mapping[str, float | None]) -> str:
        return brackets(figure, signed=False) if measured(figure) else number(figure["value"])

    rows = [[label(name), *(cell(found[key]) for key in ANSWERS)] for name, found in figures["models"].items()]
    rows += [[f"probe: {name}", cell(found), *[""] * (len(ANSWERS) - 1)] for name, found in figures["probes"].items()]
    title = (
        f"  free answers out of {figures['n_candidates']} candidates, {figures['n_examples']:,} examples of "
        f"{figures['n_users']:,} users, 95 % intervals\n"
    )
    return title + table(rows, header=("", *ANSWERS.values()))


def rounds_table(rounds: int, manifests: Manifests) -> str:
    """Groups and alignment of every round, from the manifests of a run's stages, as text."""
    rows = []
    for turn in range(1, rounds + 1):
        groups, aligned = (manifests[of_round(kind, turn)]["figures"] for kind in ("pairs", "align"))
        shown = [groups.get(key, "") for key in ("groups", "epsilon_mean")]
        rows.append([turn, *shown, *(aligned.get(key, "") for key in ("steps", "loss", "accuracy", "margin"))])
    return table(rows, header=("round", "groups", "mean ε", "steps", "loss", "accuracy", "margin"))


def print_next(config: Config, root: Path, stage: str) -> None:
    """After a single stage: the commands that go on from it."""
    if stage == "evaluate":
        paths = RunPaths(root)
        echo(f"{_results(paths)}\n  Report  {paths.report}")
        return
    done = find_stage(stage)
    following = " or ".join(f"`rosepo {name} --out {shlex.quote(str(root))}`" for name in _after(done, config))
    echo(f"  Next: {following}")


def _results(paths: RunPaths) -> str:
    metrics = json.loads(paths.metrics.read_text(encoding="utf-8"))
    candidates = [candidates_table(metrics["candidates"])] if "candidates" in metrics else []
    return "\n".join([results_table(metrics), *candidates])


def _after(done: Stage, config: Config) -> tuple[str, ...]:
    """The commands that go on from a stage."""
    if done.kind == "align" and done.round < config.pairs.rounds:
        return (f"pairs --round {done.round + 1}",)
    if done.kind == "pairs" and done.round > 1:
        return (f"align --round {done.round}",)
    return _NEXT[done.kind]


def _times(plan: RunPlan, manifests: Manifests) -> str:
    shown = []
    for step in plan.stages:
        name, pairs = step.stage.name, together_with(step.stage, manifests)
        told = f"{name} (with {pairs})" if pairs else name
        shown.append(f"{told} {duration(manifests[name]['seconds'])}")
    return f"  Time     {duration(seconds_in_all(manifests))} in all: {', '.join(shown)}"


def _suggestions(plan: RunPlan, paths: RunPaths) -> list[str]:
    from rosepo.data.catalogue import ITEMS_FILE, Catalogue

    root = paths.root
    catalogue = Catalogue.load(paths.examples / ITEMS_FILE)
    popular = catalogue.train_count.argsort(kind="stable")[::-1][:2]
    titles = " ".join(f"--history {shlex.quote(catalogue.titles[item])}" for item in popular)
    out = shlex.quote(str(root))
    listed = plan.config.model.template.candidates  # which no history brings along
    commands = [] if listed else [f"rosepo recommend --model {out}/{paths.aligned.name} {titles}"]
    if (root / "sweep" / "best.yaml").is_file() and not plan.config.sweep.trials:
        commands.append(f"rosepo run --config {out}/sweep/best.yaml --out {out} --overwrite")
    if plan.config.data.dataset is not None:
        commands.append(f"rosepo run --interactions LOG --items ITEMS --out {shlex.quote(str(root.parent))}/mine")
    return commands
