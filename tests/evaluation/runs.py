"""A tiny prepared run for the evaluation's tests: real tables, real models, no training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rosepo.config import Config, load_config
from rosepo.data.catalogue import Catalogue
from rosepo.evaluation import systems
from rosepo.evaluation.baselines import BatchScores, Markov, Transitions, training_transitions, write_transitions
from rosepo.evaluation.measured_examples import plan_parts
from rosepo.evaluation.rankers import by_scores, rank_part
from rosepo.lm.cards.record import model_record
from rosepo.lm.model.model_folder import save_policy
from rosepo.pipeline.fingerprints import stage_settings
from rosepo.report.run_report import write_report
from rosepo.run.paths import RunPaths
from rosepo.run.stages import STAGES
from rosepo.utils.files import digest
from tests.helpers import run_table, tiny_catalogue, tiny_model, tiny_tokenizer
from tests.manifests import write_manifest


def tiny_config(*overrides: str) -> Config:
    """Settings under which the tiny run was made."""
    return load_config(
        None,
        ["evaluate.bootstrap=100", "evaluate.batch_size=8", "pairs.encoder=tfidf", "model.max_length=256", *overrides],
    )


def write_examples(root: Path, catalogue: Catalogue, users: int = 24, seed: int = 0) -> None:
    """Tables of `prepare` for random users of 4 to 9 items, leave-one-out."""
    rng = np.random.default_rng(seed)
    folder = root / "examples"
    (folder / "_trajectories").mkdir(parents=True)
    rows, trajectories = [], []
    for user in range(users):
        items = rng.choice(len(catalogue), size=int(rng.integers(4, 10)), replace=False).tolist()
        trajectories.append((user, items[:-2], len(items) - 3))
        for position in range(1, len(items)):
            split = {len(items) - 1: "test", len(items) - 2: "validation"}.get(position, "train")
            rows.append((f"{user}:{position}", user, split, position, items[:position], items[position]))
    names = ("example_id", "user_id", "split", "position", "history", "target")
    pq.write_table(run_table([dict(zip(names, row)) for row in rows]), folder / "part-00000.parquet")
    columns = run_table([dict(zip(("user_id", "items", "n_targets"), row)) for row in trajectories])
    pq.write_table(columns, folder / "_trajectories" / "part-00000.parquet")
    catalogue.save(folder / "_items.parquet")


def tiny_run(root: Path, models: bool = True, n_items: int = 30, users: int = 24) -> RunPaths:
    """A run's folder with examples and, where asked, an `sft` and an `aligned` model of random weights."""
    catalogue = tiny_catalogue(n_items)
    write_examples(root, catalogue, users)
    if models:
        tokenizer = tiny_tokenizer(n_items)
        for seed, name in enumerate(("sft", "aligned")):
            model = tiny_model(vocab_size=len(tokenizer), seed=seed)
            save_policy(root / name, model, tokenizer, catalogue, model_record(tiny_config(), name))
    return RunPaths(root)


def finished(root: Path, config: Config, *names: str) -> None:
    """Manifests of stages whose folders are there, as the pipeline would have written them."""
    for name in names:
        stage = STAGES[name]
        settings = stage_settings(config, stage)
        write_manifest(root / stage.folder, stage=name, fingerprint=digest(name), settings=settings)


def drawn(config: Config, paths: RunPaths) -> str:
    """The page of a run whose evaluation was made without the pipeline."""
    write_manifest(paths.evaluation)
    return write_report(config, paths).read_text()


def markov(examples: Path, catalogue: Catalogue, folder: Path) -> Markov:
    """The Markov baseline of prepared examples; `folder` is free to hold its counts."""
    path = folder / "_transitions.arrow"
    write_transitions(training_transitions(examples), catalogue.train_count, path)
    ranker = Markov(Transitions(path), catalogue.train_count)
    path.unlink()
    return ranker


def rank_by_scores(score: BatchScores, examples: Path, out: Path) -> None:
    """The part files of a system that scores the whole catalogue, as an actor would write them."""
    out.mkdir()
    for part in plan_parts(examples):
        rank_part(by_scores(score), examples, part, out)


def rank_in_process(replace: Callable[[Any, str, Any], None]) -> None:
    """Have one actor rank in this process, on the CPU; `replace` takes what `setattr` takes."""

    def answers(work: list[dict[str, Any]], actor: Any, settings: Any, **_: Any) -> Iterator[dict[str, Any]]:
        ranker = actor(settings)
        for row in work:
            yield {name: values[0] for name, values in ranker(pa.Table.from_pylist([row])).items()}

    replace(systems, "answers_of_actors", answers)
    replace(systems, "stage_use_gpu", lambda config, section: False)
