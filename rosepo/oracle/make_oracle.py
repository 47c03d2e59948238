"""The `oracle` stage: SASRec over the full catalogue, cross-fitted by user, or a scorer of the user's own that nothing
is trained for; with the temperature that calibrates it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rosepo.config import Config
from rosepo.data.catalogue import ITEMS_FILE, Catalogue
from rosepo.metrics.ranking import hit_ratio, ndcg
from rosepo.oracle.calibration import (
    CALIBRATION_FILE,
    calibrate_preferences,
    score_validation,
    validation_arrays,
    validation_table,
)
from rosepo.oracle.crossfit import FOLDS_FILE, CrossFitted, Oracle, fold_of, oracle_models
from rosepo.oracle.external_oracle import ImportedScorer
from rosepo.oracle.fit import fit_oracles
from rosepo.oracle.load import write_kind
from rosepo.oracle.sasrec import SASRec, catalogue_digest
from rosepo.oracle.sasrec_data import ranks_of
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
    train = _training_table(paths.examples / "_trajectories", config)
    validation = validation_table(paths.examples)
    validation = validation.append_column("fold", pa.array(_folds(validation, config)))
    for name, table in (("training", train), ("validation", validation)):
        _check_folds(table, config.oracle.folds, name, paths.examples)
    how = f"{config.oracle.folds} folds" if config.oracle.folds > 1 else "users scored in sample"
    echo(
        f"  SASRec: {len(train):,} sequences, {len(catalogue):,} items, {len(validation):,} validation examples, {how}"
    )
    if config.oracle.folds == 1 and config.align.clamps_epsilon:
        echo(
            f"  align.loss={config.align.loss} takes epsilon from this oracle, which in sample is sure of what it was"
            " trained on: set oracle.folds=2"
        )
    write_kind(out, "sasrec")
    write_json(out / FOLDS_FILE, {"folds": config.oracle.folds, "seed": config.seed})
    fit_oracles(config, train, validation, catalogue, out, use_gpu)
    best, last = _best_line(out / METRICS_FILE)
    figures = {name: best[name] for name in ("hr@10", "ndcg@10")}
    if config.oracle.models > 1:  # what was logged is of the first alone
        figures = _accuracy([Oracle.load(out, catalogue.item_ids)], validation)
    held_out = _measure(CrossFitted.load(out, catalogue.item_ids), validation, len(catalogue), config)
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
        "sequences": len(train),
        "targets": int(train["n_targets"].to_numpy().sum()),
        "validation_examples": len(validation),
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
    validation = validation_table(paths.examples)
    if not len(validation):
        raise UserError(f"{paths.examples} has no validation examples for the oracle")
    echo(f"  {path}: nothing is trained")
    with Progress("oracle", len(validation), "examples") as progress:
        scores = score_validation(scorer, validation, len(catalogue), config.seed, progress)
    found = calibrate_preferences(scores[:, 0], scores[:, 1:], config.oracle.tau)
    write_json(out / CALIBRATION_FILE, found.pop("calibration"))
    write_kind(out, "scorer", tau=found["tau"], catalogue_digest=catalogue_digest(catalogue.item_ids), scorer=path)
    echo(f"  {found['validation_pairs']:,} validation pairs: tau {found['tau']:.2f}, chosen above other "
        f"{found['auc']:.3f}, calibration error {found['calibration_error']:.3f}")  # fmt: skip
    seconds = round(time.monotonic() - started, 2)
    return {"kind": "scorer", **found, "validation_examples": len(validation), "seconds": seconds}


def _measure(oracle: CrossFitted, validation: pa.Table, n_items: int, config: Config) -> dict[str, Any]:
    """Accuracy, tau and calibration on validation, each example by the oracle of its user's fold."""
    scores = score_validation(oracle, validation, n_items, config.seed)
    calibrated = calibrate_preferences(scores[:, 0], scores[:, 1:], config.oracle.tau)
    return {**_accuracy(oracle.oracles, validation), **calibrated}


def _accuracy(oracles: Sequence[Oracle], validation: pa.Table) -> dict[str, float]:
    """HR@10 and NDCG@10, each example by the oracle of its user's fold, or by the only one."""
    histories, seen, targets = validation_arrays(validation)
    folds = validation["fold"].to_numpy() if len(oracles) > 1 else np.zeros(len(targets), dtype=np.int64)
    ranks = np.empty(len(targets), dtype=np.int64)
    for fold in np.unique(folds):
        rows = np.flatnonzero(folds == fold)
        past, known = ([lists[row] for row in rows] for lists in (histories, seen))
        ranks[rows] = ranks_of(oracles[fold].model, past, targets[rows], known)
    return {"hr@10": float(hit_ratio(ranks, 10).mean()), "ndcg@10": float(ndcg(ranks, 10).mean())}


def _check_folds(table: pa.Table, folds: int, name: str, folder: Path) -> None:
    if not len(table):
        raise UserError(f"{folder} has no {name} examples for the oracle")
    empty = folds - len(pc.unique(table["fold"]))
    if folds > 1 and empty:
        raise UserError(
            f"oracle.folds={folds} leaves {empty} folds without {name} users in {folder}: lower it, or set it to 1"
        )


def _training_table(folder: Path, config: Config) -> pa.Table:
    """Columns items (indexes), n_targets, fold."""
    table = pq.read_table(folder, columns=["user_id", "items", "n_targets"])
    return table.drop_columns("user_id").append_column("fold", pa.array(_folds(table, config)))


def _folds(table: pa.Table, config: Config) -> np.ndarray:
    return fold_of(table["user_id"].to_pylist(), config.oracle.folds, config.seed)


def _best_line(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return next(line for line in reversed(lines) if line["best"]), lines[-1]
