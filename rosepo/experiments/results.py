"""The results of experiments: every variant with its cost, beside the baselines, and the answers to the questions."""

from __future__ import annotations

import json
import math
import os
import platform
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rosepo.experiments.pooled_metrics import METRICS, TRUTH, Measured, Pool, Series, read_measured
from rosepo.experiments.provenance import cost, looked_at, made_by
from rosepo.experiments.result_plots import write_pictures
from rosepo.experiments.result_tables import as_markdown
from rosepo.experiments.runs import Run
from rosepo.experiments.suite import BASELINES, Contrast, Experiments
from rosepo.metrics.bootstrap import Estimate
from rosepo.pipeline.planning import resolve_config
from rosepo.report.text.format import outcome, sign
from rosepo.run.manifest import read_manifest
from rosepo.run.paths import RunPaths
from rosepo.tuning.sweep import TRIALS_FILE
from rosepo.utils.errors import UserError
from rosepo.utils.files import now, write_json, write_text
from rosepo.utils.redaction import redact

JSON_FILE, MARKDOWN_FILE = "results.json", "results.md"
CHOSEN_BY = "ndcg@10"
_ACCURACY = ("hr@1", "hr@10", "ndcg@10")


def write_results(
    asked: Experiments, runs: Sequence[Run], out: Path, more: Sequence[str] = (), resamples: int = 1000
) -> dict[str, Any]:
    """Write `results.json`, `results.md` and its pictures of all runs that are finished; returns the first.

    Args:
        runs: of both splits, finished or not.
        more: overrides that the runs were made with. A run that was made with other settings than it has now, or whose
            settings are none any more, is told among those that failed.
    """
    data: dict[str, dict[str, list[Run]]] = {}
    missing, failed = [], {}
    for run in runs:
        try:
            changed = run.changed(more) if run.finished else []
        except UserError as error:
            failed[run.label] = str(error)
            continue
        if run.finished and not changed:
            data.setdefault(run.experiment.data, {}).setdefault(run.split, []).append(run)
        elif changed:
            failed[run.label] = f"was made with other settings ({'; '.join(changed[:3])}): --overwrite makes it again"
        elif (failure := run.failure()) is not None:
            failed[run.label] = failure
        else:
            missing.append(run.label)
    found: dict[str, Any] = {}
    for name, splits in data.items():
        found[name] = {split: _section(asked, made, resamples) for split, made in splits.items()}
        _mark_chosen(found[name])
    results = {
        "made": now(),
        "command": redact(" ".join(sys.argv)),
        "suites": [str(path) for path in asked.suites],
        "overrides": [redact(override) for override in more],
        "machine": f"{os.cpu_count()} CPUs, {platform.system()} {platform.machine()}",
        **made_by([run for splits in data.values() for made in splits.values() for run in made]),
        "resamples": resamples,
        "comparisons": sum(_comparisons(section) for splits in found.values() for section in splits.values()),
        "test_looks": looked_at(out),
        "variants": {name: variant.about for name, variant in asked.variants.items()},
        "data": found,
        "sweeps": {run.label: trials for run in runs if run.finished and (trials := _trials(run)) is not None},
        "missing": missing,
        "failed": failed,
    }
    write_json(out / JSON_FILE, results)
    write_pictures(results, out)
    write_text(out / MARKDOWN_FILE, as_markdown(results, out))
    return results


def _comparisons(section: Mapping[str, Any]) -> int:
    """Paired intervals of a section."""
    against = [row for rows in section["against"].values() for row in rows.values() if row is not None]
    return sum(map(len, against)) + sum(len(contrast["metrics"]) for contrast in section["contrasts"])


@dataclass
class _Collected:
    """What the finished runs of a data set and a split give."""

    users: dict[int, np.ndarray] = field(default_factory=dict)
    systems: dict[str, dict[int, Series]] = field(default_factory=dict)
    costs: dict[str, dict[int, dict[str, float]]] = field(default_factory=dict)
    same: dict[str, str] = field(default_factory=dict)
    """`<variant>:sft` or `<variant>:oracle` to the system that it is: a baseline, or what another variant brought."""
    elsewhere: list[str] = field(default_factory=list)
    """Runs that were evaluated on other examples than the first one of their seed."""


def _section(asked: Experiments, runs: Sequence[Run], resamples: int) -> dict[str, Any]:
    collected = _Collected()
    seeds = Counter(run.experiment.variant for run in runs)
    for seed in sorted({run.seed for run in runs}):
        _collect(collected, [run for run in runs if run.seed == seed], seeds)
    pool = Pool(collected.users, collected.systems, resamples)
    order = [*_baselines(collected), *(name for name in asked.variants if name in collected.systems)]
    comparators = [name for name in asked.comparators if name in collected.systems]
    return {
        "n_users": len({user for users in collected.users.values() for user in users.tolist()}),
        "n_examples": max(map(len, collected.users.values())),
        "seeds": sorted(collected.users),
        "truth": {key: _plain(pool.mean(TRUTH, key)) for key in next(iter(collected.systems[TRUTH].values()))},
        "systems": {name: _row(pool, collected, name) for name in order},
        "against": {base: {name: _differences(pool, name, base) for name in order if name != base}
                    for base in comparators},
        "contrasts": [_answer(pool, collected, contrast) for contrast in asked.contrasts],
        "evaluated_on_other_examples": collected.elsewhere,
    }  # fmt: skip


def _collect(collected: _Collected, runs: Sequence[Run], seeds: Mapping[str, int]) -> None:
    """Runs of one seed. Baselines are those of the variant that has the most seeds, the first of such in the suites. A
    variant with an SFT model or an oracle of its own brings that too, once for all that share it, as `<variant>:sft`.
    """
    inputs = {run.folder: (read_manifest(RunPaths(run.folder).evaluation) or {})["inputs"] for run in runs}
    baselines: dict[str, str] = {}
    for run in sorted(runs, key=lambda run: -seeds[run.experiment.variant]):
        baselines = {**inputs[run.folder], **baselines}
    first: Measured | None = None
    brought: dict[tuple[str, str], str] = {}
    for run in runs:
        own, wanted = {}, {"aligned": run.experiment.variant}
        for stage, models in (("prepare", ("popular", "markov")), ("sft", ("sft",)), ("oracle", ("oracle",))):
            if stage not in inputs[run.folder]:
                continue
            made = inputs[run.folder][stage]
            for model in models:
                brings, name = f"{run.experiment.variant}:{model}", model
                if made != baselines[stage]:
                    before = collected.same.get(brings, model)  # its name in another seed
                    name = brought.setdefault((model, made), brings if before == model else before)
                own[brings] = name
                if run.seed not in collected.systems.get(name, {}):
                    wanted[model] = name
        config = resolve_config(run.folder, None, [])
        measured = read_measured(run.folder, config, wanted)
        if first is not None and not np.array_equal(first.example_ids, measured.example_ids):
            collected.elsewhere.append(run.label)
            continue
        if first is None:
            first = measured
            collected.users[run.seed] = measured.users
            wanted[TRUTH] = TRUTH
        collected.same |= own
        for model, name in wanted.items():
            if model in measured.systems:
                collected.systems.setdefault(name, {})[run.seed] = measured.systems[model]
                collected.costs.setdefault(name, {})[run.seed] = cost(run, model)


def _baselines(collected: _Collected) -> list[str]:
    shared = [name for name in BASELINES if name in collected.systems]
    return [*shared, *(name for name in collected.systems if ":" in name)]


def _row(pool: Pool, collected: _Collected, name: str) -> dict[str, Any]:
    costs = collected.costs[name].values()
    return {
        "seeds": list(pool.seeds(name)),
        "metrics": {key: _plain(pool.mean(name, key)) for key in METRICS},
        "by_seed": {key: {seed: _number(value) for seed, value in pool.by_seed(name, key).items()} for key in METRICS},
        **{key: round(sum(cost[key] for cost in costs) / len(costs), 1) for key in next(iter(costs))},
    }


def _differences(pool: Pool, name: str, base: str) -> dict[str, Any] | None:
    if not pool.seeds(name, base):
        return None
    return {key: _paired(pool, name, base, key) for key in METRICS}


def _paired(pool: Pool, name: str, base: str, metric: str) -> dict[str, Any]:
    """The difference with its interval, and that of every seed, over the seeds that both have."""
    estimate = pool.difference(name, base, metric)
    assert estimate is not None
    ours, theirs = pool.by_seed(name, metric), pool.by_seed(base, metric)
    by_seed = {seed: _number(ours[seed] - theirs[seed]) for seed in pool.seeds(name, base)}
    return {**_plain(estimate), "by_seed": by_seed}


def _answer(pool: Pool, collected: _Collected, contrast: Contrast) -> dict[str, Any]:
    """A contrast with its paired intervals and a plain verdict a metric; without, where a system is not there yet."""
    a, b = (name if name in pool.systems else collected.same.get(name, name) for name in (contrast.a, contrast.b))
    seeds = pool.seeds(a, b)
    answers: dict[str, Any] = {}
    for key in contrast.metrics if seeds else ():
        figure = _paired(pool, a, b, key)
        answers[key] = {**figure, "verdict": verdict(key, figure)}
    return {"question": contrast.question, "a": contrast.a, "b": contrast.b, "seeds": list(seeds), "metrics": answers}


def _trials(run: Run) -> dict[str, Any] | None:
    """The trials of a run's sweep, on validation; None where it has none."""
    path = RunPaths(run.folder).sweep / TRIALS_FILE
    if run.split == "test" or not path.is_file():
        return None
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def verdict(metric: str, difference: Mapping[str, Any]) -> str:
    """What an interval says of a minus b: better or worse for accuracy, higher or lower for bias, or nothing. The
    interval knows nothing of the luck of training, so a seed that says otherwise (`by_seed`) is told."""
    found = sign(difference)
    if not found:
        return outcome(difference)
    words = ("better", "worse") if metric in _ACCURACY else ("higher", "lower")
    text = words[0] if found > 0 else words[1]
    of_seeds = difference.get("by_seed", {}).values()
    return text if all(value is None or value * found > 0 for value in of_seeds) else f"{text}, but not in every seed"


def _mark_chosen(splits: dict[str, Any]) -> None:
    """Name, on both splits, the variant that is best on validation: a choice by test figures would flatter them.

    Variants that lack a seed are left out: fewer seeds have more luck.
    """
    section = splits.get("validation", {"systems": {}, "seeds": []})
    values = {
        name: row["metrics"][CHOSEN_BY]["value"]
        for name, row in section["systems"].items()
        if name not in BASELINES and ":" not in name and row["seeds"] == section["seeds"]
    }
    for section in splits.values():
        section["chosen"] = max(values, key=lambda name: values[name]) if values else None


def _plain(estimate: Estimate) -> dict[str, float | None]:
    return {key: _number(value) for key, value in estimate.as_dict().items()}


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
