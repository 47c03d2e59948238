"""Runs of a suite as they look when they are finished: real examples and rankings, stages by their manifests alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from rosepo.config import dump_config
from rosepo.evaluation.baselines import Popular
from rosepo.evaluation.measured_examples import Batch, write_examples
from rosepo.experiments.runs import Run
from rosepo.pipeline.fingerprints import stage_settings
from rosepo.pipeline.kept_config import CONFIG_FILE
from rosepo.run.paths import RunPaths
from rosepo.run.stages import stages_of
from rosepo.utils.files import digest
from tests.evaluation import runs as tiny
from tests.helpers import tiny_catalogue
from tests.manifests import write_manifest

CATALOGUE = tiny_catalogue(30)


def noisy(strength: float, seed: int) -> Callable[[Batch], np.ndarray]:
    """A ranker that sees the target through noise: the stronger, the better."""

    def score(batch: Batch) -> np.ndarray:
        rng = np.random.default_rng([seed, len(batch.targets)])
        scores = rng.normal(size=(len(batch.targets), len(CATALOGUE)))
        scores[np.arange(len(batch.targets)), batch.targets] += strength
        return scores

    return score


def evaluate_run(run: Run, strength: float, users: int = 40, own: Mapping[str, str] | None = None) -> None:
    """A finished run whose aligned model has this strength; `own`: stages that it does not share with all other runs,
    and a mark that the runs have in common that share them."""
    own = own or {}
    tiny.write_examples(run.folder, CATALOGUE, users=users)
    inputs, config = RunPaths(run.folder), run.config()
    (inputs.evaluation / "rankings").mkdir(parents=True)
    examples = inputs.evaluation / "_examples.parquet"
    write_examples(inputs.examples, run.split, None, 8, examples)
    popular, chain = Popular(CATALOGUE.train_count), tiny.markov(inputs.examples, CATALOGUE, inputs.evaluation)
    rankers = {
        "popular": lambda batch: popular.score_all(batch.histories),
        "markov": lambda batch: chain.score_all(batch.histories),
        "oracle": noisy(3.0 if "oracle" in own else 1.5, run.seed),
        "sft": noisy(1.0, 10 + run.seed),
        "aligned": noisy(strength, 20 + run.seed),
    }
    for name, ranker in rankers.items():
        tiny.rank_by_scores(ranker, examples, inputs.evaluation / "rankings" / f"{name}.parquet")
    write_manifests(run, own)
    (run.folder / CONFIG_FILE).write_text(dump_config(config))


def write_manifests(run: Run, own: Mapping[str, str]) -> None:
    """Of every stage but the sweep: ten seconds, a thousand tokens."""
    config = run.config()
    of = {"pairs": run.experiment.variant, "align": run.experiment.variant, **own}
    marks = {name: digest([name, run.seed, of.get(name, "")]) for name in stages_of(config)}
    for name, stage in stages_of(config).items():
        folder: Path = run.folder / stage.folder
        if name != "sweep":
            made = {"fingerprint": marks[name], "seconds": 10.0, "figures": {"tokens": 1000}}
            inputs = {used: marks[used] for used in ("prepare", "sft", "oracle", "pairs", "align")}
            settings = stage_settings(config, stage)
            write_manifest(folder, stage=name, settings=settings, inputs=inputs, **made)
