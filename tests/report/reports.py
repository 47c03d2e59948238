"""A finished tiny run for the tests of reports: real tables, measured by the product; scorers in place of models."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rosepo.data.catalogue import Catalogue
from rosepo.evaluation.baselines import Popular
from rosepo.evaluation.evaluate_rankings import evaluate_rankings
from rosepo.evaluation.measured_examples import write_examples
from rosepo.report.run_report import write_report
from rosepo.run.paths import RunPaths
from rosepo.utils.files import write_json
from tests.evaluation import runs
from tests.manifests import write_manifest

EVIL = '<script>alert("x")</script> & <b>Friends</b> | *'
EXTRA = "Some-Other System/v2 <beta> with a name that is far too long for any picture"


def evil_catalogue() -> Catalogue:
    """Titles that are HTML and Markdown."""
    catalogue = runs.tiny_catalogue(30)
    titles = [EVIL + str(i) for i in range(30)]
    return Catalogue(catalogue.item_ids, titles, catalogue.categories, catalogue.train_count)


def shared_run(factory: pytest.TempPathFactory, seed: int = 0, everything: bool = False, **align: Any) -> Path:
    """The folder of a `finished_run` that tests only read: made once for all of them."""
    root = factory.getbasetemp() / f"finished-{seed}-{everything}"
    return root if (root / "report.html").exists() else finished_run(root, seed, everything, **align).root


def finished_run(root: Path, seed: int = 0, everything: bool = False, **align: Any) -> RunPaths:
    """A run as `rosepo evaluate` leaves it, whose aligned "model" likes titles by a taste drawn from `seed`.

    Args:
        everything: with all that an evaluation may measure, see `with_everything`.
        align: settings in the manifest of its alignment.
    """
    catalogue = evil_catalogue()
    runs.write_examples(root, catalogue)
    inputs, out = RunPaths(root), root / "evaluation"
    (out / "rankings").mkdir(parents=True)
    config = runs.tiny_config("data.dataset=movietweetings-100k", "align.loss=pairwise")
    write_examples(inputs.examples, "test", None, 8, out / "_examples.parquet")
    chain = runs.markov(inputs.examples, catalogue, out)
    taste = np.random.default_rng(seed).permutation(len(catalogue))
    scorers = {"popular": Popular(catalogue.train_count), "markov": chain, "sft": chain, "aligned": Popular(taste)}
    for name, scorer in scorers.items():
        runs.rank_by_scores(
            lambda batch, scorer=scorer: scorer.score_all(batch.histories),
            out / "_examples.parquet",
            out / "rankings" / f"{name}.parquet",
        )
    metrics, exposure = evaluate_rankings(
        config, inputs, catalogue, out / "_examples.parquet", out / "rankings", list(scorers)
    )
    write_json(out / "metrics.json", metrics | (with_everything(metrics) if everything else {}))
    pq.write_table(exposure, out / "exposure.parquet")
    _write_groups(inputs)
    _write_logs(inputs)
    _write_manifests(inputs, align)
    shutil.copyfile(out / "metrics.json", root / "metrics.json")
    write_report(config, inputs)
    return inputs


def with_everything(metrics: dict[str, Any]) -> dict[str, Any]:
    """A system of another name, groups of users and the candidate protocol, as evaluation may write them."""
    models, differences = metrics["models"], metrics["differences"]
    figures = {key: models["aligned"][key] for key in ("hr@10", "ndcg@10", "log_popularity", "hallucination")}
    group = {
        "n_users": 12,
        "n_examples": 13,
        "models": dict.fromkeys(("sft", "aligned", EXTRA), figures),
        "differences": {"aligned-sft": differences["aligned-sft"]},
    }
    value = {"value": 0.25, "low": 0.125, "high": 0.375}
    among = {"hr@1": value, "hr@1_valid": value, "valid_ratio": {"value": 0.987}, "hr@1_substring": value}
    return {
        "models": models | {EXTRA: models["markov"]},
        "differences": differences | {f"{EXTRA}-aligned": differences["aligned-sft"]},
        "groups": {"history_length": {"up_to_5": group, "over_5": group}},
        "candidates": {
            "n_examples": 24, "n_users": 23, "n_candidates": 20,
            "models": {"sft": among, "aligned": among},
            "probes": dict.fromkeys(("chance", "slot", "item_slot", "popularity"), value),
            "differences": {"aligned-sft": {"hr@1": {"value": 0.1, "low": 0.05, "high": 0.2}}},
        },
    }  # fmt: skip


def _write_groups(paths: RunPaths) -> None:
    paths.groups.mkdir()
    groups = {"strategy": [["semantic", "popularity"]] * 5, "epsilon": [[0.1, 0.4]] * 5}
    pq.write_table(pa.table(groups), paths.groups / "part-00000.parquet")


def _write_logs(paths: RunPaths) -> None:
    first = {"loss": 0.75, "margin": 0.0, "accuracy": 0.5}
    last = {"loss": 0.5, "margin": 0.25, "accuracy": 0.625, "validation_loss": 0.625, "hr@10": 0.3, "ndcg@10": 0.2}
    for folder in (paths.sft, paths.aligned):
        folder.mkdir()
        lines = [{"step": 0, "epoch": 0.0}, {"step": 1, **first}, {"step": 2, **last}]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def _write_manifests(paths: RunPaths, align: dict[str, Any]) -> None:
    strategies = {name: {"pairs": 5, "epsilon_mean": 0.2, "auc": 0.5} for name in ("popularity", "semantic")}
    common = {"command": "rosepo run --set a='<i>'", "revision": "0123456789ab"}
    stages: dict[str, tuple[Path, dict[str, Any]]] = {
        "prepare": (paths.examples, {"files": {"log.csv": "fedcba9876543210"}, "settings": {"seed": 0}}),
        "sft": (paths.sft, {"figures": {"tokens": 1234567}, "peak_memory": 3 << 30, "processes": 5}),
        "pairs": (paths.groups, {"figures": {"prompt_tokens": 7654321, "strategies": strategies}}),
        "evaluate": (paths.evaluation, {"peak_memory": 1 << 30, "processes": 2}),
        "align": (paths.aligned, {"settings": {"seed": 0, **{f"align.{key}": value for key, value in align.items()}}}),
    }
    for place, (name, (folder, more)) in enumerate(stages.items()):
        manifest = {"stage": name, "seconds": 60.0 * (place + 1), "fingerprint": f"print-of-{name}"}
        write_manifest(folder, **manifest, **common, **more)
