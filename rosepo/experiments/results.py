"""The results of experiments: every variant with its cost, beside the baselines, and the answers to the questions."""

from __future__ import annotations

import json
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
from rosepo.experiments.provenance import cost, looked_at
from rosepo.experiments.results_page import agreed, write_page
from rosepo.experiments.runs import Run
from rosepo.experiments.suite import BASELINES, Contrast, Experiments
from rosepo.metrics.bootstrap import plain
from rosepo.report.run_metadata import made_by
from rosepo.report.text.format import outcome, sign
from rosepo.run.paths import RunPaths
from rosepo.tuning.sweep import TRIALS_FILE
from rosepo.utils.errors import UserError
from rosepo.utils.files import now, write_json
from rosepo.utils.redaction import redact

JSON_FILE = "results.json"
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
    failures = {run.label: _failure(run, more) for run in runs}
    made = [run for run in runs if run.finished and failures[run.label] is None]
    for run in made:
        data.setdefault(run.experiment.data, {}).setdefault(run.split, []).append(run)
    found: dict[str, Any] = {}
    for name, splits in data.items():
        found[name] = {split: _section(asked, of_split, resamples) for split, of_split in splits.items()}
        _mark_chosen(found[name])
    results = {
        "made": now(),
        "command": redact(" ".join(sys.argv)),
        "suites": [str(path) for path in asked.suites],
        "overrides": [redact(override) for override in more],
        "machine": f"{os.cpu_count()} CPUs, {platform.system()} {platform.machine()}",
        **made_by(manifest for run in made for manifest in run.manifests.values()),
        "resamples": resamples,
        "comparisons": sum(_comparisons(section) for splits in found.values() for section in splits.values()),
        "test_looks": looked_at(out),
        "variants": {name: variant.about for name, variant in asked.variants.items()},
        "data": found,
        "sweeps": {run.label: trials for run in made if (trials := _trials(run)) is not None},
        "missing": [run.label for run in runs if not run.finished and failures[run.label] is None],
        "failed": {label: why for label, why in failures.items() if why is not None},
    }
    write_json(out / JSON_FILE, results)
    write_page(results, out)
    return results


def _failure(run: Run, more: Sequence[str]) -> str | None:
    """Why a run is no result, in a sentence; None where it is one, or was not made yet."""
    if not run.finished:
        return run.failure()
    try:
        changed = run.changed(more)
    except UserError as error:
        return str(error)
    told = f"was made with other settings ({'; '.join(changed[:3])}): --overwrite makes it again"
    return told if changed else None


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
    brought = [name for name in collected.systems if ":" in name]
    order = [name for name in (*BASELINES, *brought, *asked.variants) if name in collected.systems]
    truth = next(iter(collected.systems[TRUTH].values()))
    return {
        "n_users": len({user for users in collected.users.values() for user in users.tolist()}),
        "n_examples": max(map(len, collected.users.values())),
        "seeds": sorted(collected.users),
        "truth": {key: plain(pool.mean(TRUTH, key)) for key in truth},
        "systems": {name: _row(pool, collected, name) for name in order},
        "against": {
            base: {name: _differences(pool, name, base) for name in order if name != base}
            for base in asked.comparators
            if base in collected.systems
        },
        "contrasts": [_answer(pool, collected, contrast) for contrast in asked.contrasts],
        "evaluated_on_other_examples": collected.elsewhere,
    }


def _collect(collected: _Collected, runs: Sequence[Run], seeds: Mapping[str, int]) -> None:
    """Runs of one seed. Baselines are those of the variant that has the most seeds, the first of such in the suites. A
    variant with an SFT model or an oracle of its own brings that too, once for all that share it, as `<variant>:sft`.
    """
    inputs = {run.label: run.manifests["evaluate"]["inputs"] for run in runs}
    baselines: dict[str, str] = {}
    for run in sorted(runs, key=lambda run: -seeds[run.experiment.variant]):
        baselines = inputs[run.label] | baselines
    first: Measured | None = None
    brought: dict[tuple[str, str], str] = {}
    for run in runs:
        variant, own = run.experiment.variant, {}
        for model in ("sft", "oracle"):
            made = inputs[run.label].get(model)
            if made is not None:
                name = model
                if made != baselines[model]:
                    before = collected.same.get(f"{variant}:{model}", model)  # its name in another seed
                    name = brought.setdefault((model, made), f"{variant}:{model}" if before == model else before)
                own[f"{variant}:{model}"] = name
        named = {"aligned": variant, "popular": "popular", "markov": "markov"}
        named |= {key.partition(":")[2]: name for key, name in own.items()}
        wanted = {model: name for model, name in named.items() if run.seed not in collected.systems.get(name, {})}
        measured = read_measured(run.folder, run.made_with, wanted)
        if first is None:
            first = measured
            collected.users[run.seed] = measured.users
            wanted[TRUTH] = TRUTH
        elif not np.array_equal(first.example_ids, measured.example_ids):
            collected.elsewhere.append(run.label)
            continue
        collected.same |= own
        for model, name in wanted.items():
            if model in measured.systems:
                collected.systems.setdefault(name, {})[run.seed] = measured.systems[model]
                collected.costs.setdefault(name, {})[run.seed] = cost(run, model)


def _row(pool: Pool, collected: _Collected, name: str) -> dict[str, Any]:
    costs = collected.costs[name].values()
    return {
        "seeds": list(pool.seeds(name)),
        "metrics": {key: plain(pool.mean(name, key)) for key in METRICS},
        "by_seed": {key: pool.by_seed(name, key) for key in METRICS},
        **{key: round(sum(cost[key] for cost in costs) / len(costs), 1) for key in next(iter(costs))},
    }


def _answer(pool: Pool, collected: _Collected, contrast: Contrast) -> dict[str, Any]:
    """A contrast with its paired intervals and a plain verdict a metric; without, where a system is not there yet."""
    a, b = (name if name in pool.systems else collected.same.get(name, name) for name in (contrast.a, contrast.b))
    figures = _differences(pool, a, b, contrast.metrics) or {}
    answers = {key: {**figure, "verdict": verdict(key, figure)} for key, figure in figures.items()}
    seeds = list(pool.seeds(a, b))
    return {"question": contrast.question, "a": contrast.a, "b": contrast.b, "seeds": seeds, "metrics": answers}


def _differences(pool: Pool, name: str, base: str, metrics: Sequence[str] = METRICS) -> dict[str, Any] | None:
    """Of a system minus another with its interval, and that of every seed, over the seeds that both have; None where
    there is none."""
    seeds = pool.seeds(name, base)
    found = {}
    for key in metrics if seeds else ():
        ours, theirs = pool.by_seed(name, key), pool.by_seed(base, key)
        by_seed = {seed: _minus(ours[seed], theirs[seed]) for seed in seeds}
        found[key] = {**plain(pool.difference(name, base, key)), "by_seed": by_seed}
    return found or None


def _minus(ours: float | None, theirs: float | None) -> float | None:
    return None if ours is None or theirs is None else ours - theirs


def verdict(metric: str, difference: Mapping[str, Any]) -> str:
    """What an interval says of a minus b: better or worse for accuracy, higher or lower for bias, or nothing. The
    interval knows nothing of the luck of training, so a seed that says otherwise (`by_seed`) is told."""
    told = outcome(difference, *(("better", "worse") if metric in _ACCURACY else ("higher", "lower")))
    return told if agreed(difference) or not sign(difference) else f"{told}, but not in every seed"


def _trials(run: Run) -> dict[str, Any] | None:
    """The trials of a run's sweep, on validation; None where it has none."""
    path = RunPaths(run.folder).sweep / TRIALS_FILE
    if run.split == "test" or not path.is_file():
        return None
    return json.loads(path.read_text(encoding="utf-8")) | {"max_examples": run.made_with.sweep.max_examples}


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
