"""The `oracle` stage: SASRec over the full catalogue, cross-fitted by user, or a scorer of the user's own that nothing
is trained for; with the temperature that calibrates it.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rosepo.config import Config
from rosepo.data.catalogue import ITEMS_FILE, Catalogue
from rosepo.data.seen import read_split, trajectory_batches
from rosepo.metrics.ranking import hit_ratio, ndcg
from rosepo.oracle.calibration import CALIBRATION_FILE, NEGATIVES, calibrate_preferences, score_batches
from rosepo.oracle.crossfit import FOLDS_FILE, oracle_models
from rosepo.oracle.external_oracle import ImportedScorer
from rosepo.oracle.fit import fit_oracles
from rosepo.oracle.load import write_kind
from rosepo.oracle.log import Extent, read_validation
from rosepo.oracle.sasrec import SASRec, catalogue_digest
from rosepo.run.resources import stage_use_gpu
from rosepo.training.metric_log import METRICS_FILE
from rosepo.utils.console import Progress, echo
from rosepo.utils.errors import UserError
from rosepo.utils.files import write_json

if TYPE_CHECKING:
    from rosepo.run.paths import RunPaths


def make_oracle(config: Config, paths: RunPaths, out: Path) -> dict[str, Any]:
    """The stage's function: train SASRec, or calibrate the scorer that `oracle.scorer` names; see there."""
    if config.oracle.kind == "sasrec":
        return train_oracle(config, paths, out)
    return calibrate_scorer(config, paths, out)


def train_oracle(config: Config, paths: RunPaths, out: Path) -> dict[str, Any]:
    """Train, keep the weights that were best on validation, fit tau there, write the oracle folder.

    `out` is the model of all users, which the evaluation ranks with; `fold-<k>/` are those that score the users of
    their fold, for epsilon. In each, `model-<n>/` are the other members of an ensemble (`oracle.models`).

    Returns:
        Figures: kind; HR@10 and NDCG@10 on validation of the model of all users and, as `held_out`, of each user by the
        model that did not train on it; tau, auc (a target against an item drawn evenly), calibration error; sizes,
        seconds.

    Raises:
        UserError: no validation examples, a fold without users, or more workers than the cluster has CPUs for.
        StageError: training failed.
    """
    started = time.monotonic()
    use_gpu = stage_use_gpu(config, "oracle")
    catalogue = Catalogue.load(paths.examples / ITEMS_FILE)
    folds, columns = config.oracle.folds, ("user_id", "items", "n_targets")
    train = Extent.of(trajectory_batches(paths.examples, columns), "items", folds, config.seed)
    validation = Extent.of(read_split(paths.examples, "validation"), "history", folds, config.seed)
    for name, extent in (("training", train), ("validation", validation)):
        _check_folds(extent, folds, name, paths.examples)
    how = f"{config.oracle.folds} folds" if config.oracle.folds > 1 else "users scored in sample"
    echo(
        f"  SASRec: {train.rows:,} sequences, {len(catalogue):,} items, {validation.rows:,} validation examples, {how}"
    )
    if config.oracle.folds == 1 and config.align.clamps_epsilon:
        echo(
            f"  align.loss={config.align.loss} takes epsilon from this oracle, which in sample is sure of what it was"
            " trained on: set oracle.folds=2"
        )
    write_kind(out, "sasrec")
    write_json(out / FOLDS_FILE, {"folds": config.oracle.folds, "seed": config.seed})
    longest = max(train.longest - 1, validation.longest, 1)
    measured = fit_oracles(config, paths.examples, validation.rows, longest, catalogue, out, use_gpu)
    best, last = _best_line(out / METRICS_FILE)
    figures = {name: best[name] for name in ("hr@10", "ndcg@10")}
    if config.oracle.models > 1:  # what was logged is of the first alone
        figures = _accuracy(measured.everyone)
    calibrated = calibrate_preferences(measured.scores[:, 0], measured.scores[:, 1:], config.oracle.tau)
    held_out = {**_accuracy(measured.held_out), **calibrated}
    write_json(out / CALIBRATION_FILE, held_out.pop("calibration"))
    for model in oracle_models(config.oracle, out):
        SASRec.load(model.folder, catalogue.item_ids)[0].save(model.folder, catalogue.item_ids, held_out["tau"])
    first = f"{config.oracle.models} models, the first of them " if config.oracle.models > 1 else ""
    echo(f"  {first}best after epoch {best['step']} of {last['step']}: validation HR@10 {figures['hr@10']:.3f}, "
        f"NDCG@10 {figures['ndcg@10']:.3f}")  # fmt: skip
    echo(f"  users {'held out' if config.oracle.folds > 1 else 'in sample'}: HR@10 {held_out['hr@10']:.3f}, "
        f"tau {held_out['tau']:.2f}, calibration error {held_out['calibration_error']:.3f}")  # fmt: skip
    return {
        "kind": "sasrec",
        **figures,
        "tau": held_out.pop("tau"),
        "held_out": held_out,
        "folds": config.oracle.folds,
        "models": config.oracle.models,
        "epoch": best["step"],
        "epochs": last["step"],
        "training_seconds": last["seconds"],
        "seconds": round(time.monotonic() - started, 2),
        "sequences": train.rows,
        "targets": train.targets,
        "validation_examples": validation.rows,
    }


def calibrate_scorer(config: Config, paths: RunPaths, out: Path) -> dict[str, Any]:
    """Ask the scorer of `oracle.scorer` about validation, fit tau where it is not set, write the oracle folder.

    Returns:
        Figures: kind, tau, auc, calibration_error, validation_pairs, validation_examples, seconds.

    Raises:
        UserError: a scorer that cannot be made or whose answers are no scores, or no validation examples.
    """
    started, path = time.monotonic(), str(config.oracle.scorer)
    catalogue = Catalogue.load(paths.examples / ITEMS_FILE)
    scorer = ImportedScorer.make(path, catalogue)
    validation = read_validation(paths.examples)
    if not len(validation):
        raise UserError(f"{paths.examples} has no validation examples for the oracle")
    echo(f"  {path}: nothing is trained")
    scores = np.empty((len(validation), 1 + NEGATIVES), dtype=np.float32)
    with Progress("oracle", len(validation), "examples") as progress:
        for rows, answers in score_batches(scorer, validation, len(catalogue), config.seed):
            scores[rows] = answers
            progress.update(len(rows))
    found = calibrate_preferences(scores[:, 0], scores[:, 1:], config.oracle.tau)
    write_json(out / CALIBRATION_FILE, found.pop("calibration"))
    write_kind(out, "scorer", tau=found["tau"], catalogue_digest=catalogue_digest(catalogue.item_ids), scorer=path)
    echo(f"  {found['validation_pairs']:,} validation pairs: tau {found['tau']:.2f}, chosen above other "
        f"{found['auc']:.3f}, calibration error {found['calibration_error']:.3f}")  # fmt: skip
    seconds = round(time.monotonic() - started, 2)
    return {"kind": "scorer", **found, "validation_examples": len(validation), "seconds": seconds}


def _accuracy(ranks: np.ndarray) -> dict[str, float]:
    return {"hr@10": float(hit_ratio(ranks, 10).mean()), "ndcg@10": float(ndcg(ranks, 10).mean())}


def _check_folds(extent: Extent, folds: int, name: str, folder: Path) -> None:
    if not extent.rows:
        raise UserError(f"{folder} has no {name} examples for the oracle")
    empty = folds - extent.folds
    if folds > 1 and empty:
        raise UserError(
            f"oracle.folds={folds} leaves {empty} folds without {name} users in {folder}: lower it, or set it to 1"
        )


def _best_line(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return next(line for line in reversed(lines) if line["best"]), lines[-1]
