"""The `sweep` stage: Ray Tune over settings of `align`, every trial on the same groups.

A trial aligns the SFT model with its own settings, on the groups of the first round, and is measured on validation
examples. Nothing but the settings differs between trials: groups, ε, reference log-probabilities and the measured
examples come from the same tables.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from rosepo.config import Config
from rosepo.data.catalogue import ITEMS_FILE, Catalogue
from rosepo.data.seen import read_split
from rosepo.run.paths import RunPaths
from rosepo.run.resources import TRIAL_CPUS, stage_use_gpu
from rosepo.tuning.search_space import best_config, check_space, trial_settings, with_settings
from rosepo.utils.console import echo, table
from rosepo.utils.errors import StageError
from rosepo.utils.files import write_json
from rosepo.utils.quiet import quiet_worker

TRIALS_FILE, BEST_FILE = "trials.json", "best.yaml"
_MEASURED = ("hr@10", "ndcg@10")


def sweep(config: Config, paths: RunPaths, out: Path) -> dict[str, Any]:
    """Try the settings of `trial_settings` and write `trials.json`, `best.yaml` and each trial's `metrics.jsonl`.

    Returns:
        Figures: the trials with their settings and metrics, the best one, and the SFT model's metrics.

    Raises:
        UserError: settings that `align` refuses; before the first trial.
        StageError: no trial came to an end.
    """
    from rosepo.lm.model.model_folder import check_catalogue

    check_space(config)
    check_catalogue(paths.sft, Catalogue.load(paths.examples / ITEMS_FILE), "run `rosepo sft` again")
    use_gpu = stage_use_gpu(config, "sweep")
    settings = trial_settings(config)
    if config.pairs.rounds > 1:
        echo(f"  settings are tried on the groups of round 1 of {config.pairs.rounds}, from the SFT model")
    echo("  measuring the SFT model")
    before = _measure_beside(paths.sft, config, paths, use_gpu)
    results = _run_trials(config, paths, out, settings, use_gpu)
    finished = [result for result in results if "error" not in result]
    if not finished:
        raise StageError(f"sweep: all {len(results)} trials failed; the first said: {results[0]['error']}")
    best = max(finished, key=lambda result: result[config.sweep.metric])
    write_json(out / TRIALS_FILE, {"metric": config.sweep.metric, "sft": before, "trials": results})
    (out / BEST_FILE).write_text(best_config(config, best["settings"]), encoding="utf-8")
    echo(_as_table(results, before, best, config.sweep.metric))
    return {"trials": results, "best": best, "sft": before, "metric": config.sweep.metric}


@dataclass(frozen=True)
class Trial:
    """What a trial needs, sent to its process once."""

    config: Config
    paths: RunPaths
    out: Path
    gpu: bool

    def run(self, number: int, settings: dict[str, Any]) -> dict[str, float]:
        """Align with the settings, measure, and keep the training curve."""
        from rosepo.training.align import align, align_in_process

        quiet_worker()
        config = with_settings(self.config, settings)
        folder = self.folder(number)
        folder.mkdir(parents=True)
        try:
            if config.sweep.mode == "trainer":
                figures = align(config, self.paths, folder, max_groups=config.sweep.max_groups)
            else:
                figures = align_in_process(config, self.paths, folder, max_groups=config.sweep.max_groups, gpu=self.gpu)
            # A trial that trains in its own process holds what it needs to measure, the GPU too.
            measure = _measure if config.sweep.mode == "process" else _measure_beside
            measured = measure(folder, config, self.paths, self.gpu)
            kept = self.out / "curves"
            kept.mkdir(exist_ok=True)
            shutil.copyfile(folder / "metrics.jsonl", kept / f"trial-{number:03d}.jsonl")
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return {**measured, "loss": figures["loss"], "seconds": figures["seconds"]}

    def folder(self, number: int) -> Path:
        """Where a trial trains."""
        return self.out / f"trial-{number:03d}"


def _run_trials(
    config: Config, paths: RunPaths, out: Path, settings: list[dict[str, Any]], use_gpu: bool
) -> list[dict[str, Any]]:
    from ray import tune

    from rosepo.tuning.trial_progress import TrialProgress

    # Workers may stand on other machines, where a relative path means another place.
    trial = Trial(config, RunPaths(paths.root), out, use_gpu)
    storage = out / "_ray_tune"

    def run(chosen: dict[str, Any]) -> None:
        tune.report(trial.run(chosen["number"], settings[chosen["number"]]))

    # Tune's own handler would turn Ctrl-C into a normal end with unfinished trials, and stay for the next stages.
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    # The workers of a trainer ask for theirs on their own.
    asked = {"CPU": config.align.cpus_per_worker} | ({"GPU": 1.0} if use_gpu else {})
    asked = {"CPU": TRIAL_CPUS} if config.sweep.mode == "trainer" else asked
    told = TrialProgress(len(settings), trial.folder, _MEASURED)
    tuner = tune.Tuner(
        tune.with_resources(run, asked),
        param_space={"number": tune.grid_search(list(range(len(settings))))},
        # A process that ran a trial runs the next one too: its imports take longer than a small trial.
        tune_config=tune.TuneConfig(max_concurrent_trials=config.sweep.concurrent, reuse_actors=True),
        run_config=tune.RunConfig(name="sweep", storage_path=str(storage), verbose=0, callbacks=[told]),
    )
    try:
        with told.progress:
            told.progress.doing("starting trials")
            grid = tuner.fit()
    finally:
        shutil.rmtree(storage, ignore_errors=True)
    results: list[dict[str, Any]] = []
    ended: list[Any] = [grid[place] for place in range(len(grid))]
    for result in sorted(ended, key=lambda result: int(result.config["number"])):
        number = int(result.config["number"])
        row: dict[str, Any] = {"trial": number, "settings": settings[number]}
        if result.error is not None:
            row["error"] = str(result.error).strip().splitlines()[-1]
        else:
            row |= {key: (result.metrics or {})[key] for key in (*_MEASURED, "loss", "seconds")}
        results.append(row)
    return results


def _measure_beside(model_folder: Path, config: Config, paths: RunPaths, gpu: bool) -> dict[str, float]:
    """`_measure` in a process of its own, with the GPU that this one does not have: no driver loads a model."""
    import ray

    cpus, gpus = config.align.cpus_per_worker, 1.0 if gpu else 0.0
    # "DEFAULT" is outside the placement group of a trial, whose half CPU would be all that there is for a task of it.
    task: Any = ray.remote(num_cpus=cpus, num_gpus=gpus, scheduling_strategy="DEFAULT")(_measure)
    found: dict[str, float] = ray.get(task.remote(model_folder, config, RunPaths(paths.root), gpu))
    return found


def _measure(model_folder: Path, config: Config, paths: RunPaths, gpu: bool) -> dict[str, float]:
    """HR@10 and NDCG@10 of a model on the sweep's validation examples."""
    import torch

    from rosepo.evaluation.measured_examples import Batch
    from rosepo.evaluation.rankers import rank_batch
    from rosepo.lm.model.policy import load_recommender
    from rosepo.lm.titles.beam_search import Decoder
    from rosepo.metrics.ranking import accuracy, target_ranks

    quiet_worker()
    recommender = load_recommender(model_folder, getattr(torch, config.precision("evaluate", gpu)))
    model = recommender.model.to("cuda" if gpu else "cpu")
    extra = ("candidates",) if recommender.builder.lists_candidates else ()
    examples = pa.concat_tables(read_split(paths.examples, "validation", config.sweep.max_examples, extra))
    if not len(examples):
        raise StageError(f"{paths.examples} holds no validation example to measure trials on")
    batch = Batch.of(examples)
    items, _, _ = rank_batch(recommender, Decoder(model, recommender.builder, config.evaluate.beams), batch, 10)
    figures = accuracy(target_ranks(items, batch.targets))
    return {key: float(figures[key].mean()) for key in _MEASURED}


def _as_table(results: list[dict[str, Any]], before: dict[str, float], best: dict[str, Any], metric: str) -> str:
    keys = list(best["settings"])
    rows: list[list[Any]] = [["SFT, before", *("" for _ in keys), *(before[key] for key in _MEASURED), ""]]
    for result in results:
        settings = [result["settings"][key] for key in keys]
        if "error" in result:
            rows.append([f"trial {result['trial']}", *settings, "failed", result["error"][:40], ""])
            continue
        mark = f"best {metric}" if result is best else ""
        rows.append([f"trial {result['trial']}", *settings, *(result[key] for key in _MEASURED), mark])
    return table(rows, header=("validation", *keys, *(key.upper() for key in _MEASURED), ""))
