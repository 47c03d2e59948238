"""The `oracle` stage: SASRec over the full catalogue, cross-fitted by user, with the temperature that calibrates it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rosepo.artifacts import write_json
from rosepo.config import Config
from rosepo.console import say
from rosepo.data.catalogue import Catalogue
from rosepo.data.seen import read_split
from rosepo.errors import UserError
from rosepo.evaluation.metrics import hit_ratio, ndcg
from rosepo.models.oracle import FOLDS_FILE, CrossFitted, Oracle, fold_folder, fold_of
from rosepo.resources import stage_use_gpu
from rosepo.sampling.epsilon import calibration, fit_tau
from rosepo.training.metrics import METRICS_FILE
from rosepo.training.oracle_fit import fit_oracles, validation_arrays
from rosepo.training.sequences import ranks_of

if TYPE_CHECKING:
    from rosepo.artifacts import Outputs

TAU_NEGATIVES = 20
"""Items drawn beside each validation target to fit tau on."""
CALIBRATION_FILE = "calibration.json"


def train_oracle(config: Config, inputs: Outputs, out: Path) -> dict[str, Any]:
    """Train, keep the weights that were best on validation, fit tau there, write the oracle folder.

    `out` is the model of all users, which the evaluation ranks with; `fold-<k>/` are those that score the users of
    their fold, for epsilon.

    Returns:
        Figures: HR@10 and NDCG@10 on validation of the model of all users and, as `held_out`, of each user by the model
        that did not train on it; tau, auc (a target against an item drawn evenly), calibration error; sizes, seconds.

    Raises:
        UserError: no validation examples, a fold without users, or more workers than the cluster has CPUs for.
        StageError: training failed.
    """
    started = time.monotonic()
    use_gpu = stage_use_gpu(config, "oracle")
    catalogue = Catalogue.load(inputs.examples / "_items.parquet")
    train = _training_table(inputs.examples / "_trajectories", catalogue, config)
    validation = _validation_table(inputs.examples, catalogue, config)
    for name, table in (("training", train), ("validation", validation)):
        _check_folds(table, config.oracle.folds, name, inputs.examples)
    how = f"{config.oracle.folds} folds" if config.oracle.folds > 1 else "users scored in sample"
    say(f"  SASRec: {len(train):,} sequences, {len(catalogue):,} items, {len(validation):,} validation examples, {how}")
    write_json(out / FOLDS_FILE, {"folds": config.oracle.folds, "seed": config.seed})
    fit_oracles(config, train, validation, catalogue, out, use_gpu)
    best, last = _best_line(out / METRICS_FILE)
    held_out = _measure(CrossFitted.load(out, catalogue.item_ids), validation, len(catalogue), config.seed)
    write_json(out / CALIBRATION_FILE, held_out.pop("calibration"))
    for folder in (out, *(fold_folder(out, fold) for fold in range(config.oracle.folds) if config.oracle.folds > 1)):
        Oracle.load(folder, catalogue.item_ids).model.save(folder, catalogue.item_ids, held_out["tau"])
    figures = {name: best[name] for name in ("hr@10", "ndcg@10")}
    say(f"  best after epoch {best['step']} of {last['step']}: validation HR@10 {figures['hr@10']:.3f}, "
        f"NDCG@10 {figures['ndcg@10']:.3f}")  # fmt: skip
    say(f"  users {'held out' if config.oracle.folds > 1 else 'in sample'}: HR@10 {held_out['hr@10']:.3f}, "
        f"tau {held_out['tau']:.2f}, calibration error {held_out['calibration_error']:.3f}")  # fmt: skip
    return {
        **figures,
        "tau": held_out.pop("tau"),
        "held_out": held_out,
        "folds": config.oracle.folds,
        "epoch": best["step"],
        "epochs": last["step"],
        "training_seconds": last["seconds"],
        "seconds": round(time.monotonic() - started, 2),
        "sequences": len(train),
        "targets": int(train["n_targets"].to_numpy().sum()),
        "validation_examples": len(validation),
    }


def _measure(oracle: CrossFitted, validation: pa.Table, n_items: int, seed: int) -> dict[str, Any]:
    """Accuracy, tau and calibration on validation, each example by the model of its user's fold."""
    histories, seen, targets = validation_arrays(validation)
    users = validation["user_id"].to_pylist()
    folds = validation["fold"].to_numpy()
    ranks = np.empty(len(targets), dtype=np.int64)
    for fold in np.unique(folds):
        rows = np.flatnonzero(folds == fold)
        past, known = ([lists[row] for row in rows] for lists in (histories, seen))
        ranks[rows] = ranks_of(oracle.oracles[fold].model, past, targets[rows], known)
    rng = np.random.default_rng([seed, len(targets)])
    drawn = rng.integers(0, n_items, size=(len(targets), TAU_NEGATIVES))
    # The target itself is no other item; its neighbour is.
    drawn = np.where(drawn == targets[:, None], (drawn + 1) % n_items, drawn)
    items = np.concatenate([targets[:, None], drawn], axis=1)
    scores = np.concatenate(
        [
            oracle.score_items(users[low : low + 512], histories[low : low + 512], items[low : low + 512])
            for low in range(0, len(items), 512)
        ]
    )
    tau = float(fit_tau(scores[:, 0], scores[:, 1:]))
    margins = (scores[:, :1] - scores[:, 1:]) / tau
    found = calibration(margins)
    return {
        "hr@10": float(hit_ratio(ranks, 10).mean()),
        "ndcg@10": float(ndcg(ranks, 10).mean()),
        "tau": tau,
        "auc": float((margins > 0).mean() + 0.5 * (margins == 0).mean()),
        "calibration_error": found["error"],
        "calibration": found,
    }


def _check_folds(table: pa.Table, folds: int, name: str, folder: Path) -> None:
    if not len(table):
        raise UserError(f"{folder} has no {name} examples for the oracle")
    empty = folds - len(pc.unique(table["fold"]))
    if folds > 1 and empty:
        raise UserError(
            f"oracle.folds={folds} leaves {empty} folds without {name} users in {folder}: lower it, or set it to 1"
        )


def _training_table(folder: Path, catalogue: Catalogue, config: Config) -> pa.Table:
    table = pq.read_table(folder, columns=["user_id", "items", "n_targets"])
    items = _as_indexes(table["items"], catalogue)
    return pa.table({"items": items, "n_targets": table["n_targets"], "fold": _folds(table, config)})


def _validation_table(folder: Path, catalogue: Catalogue, config: Config) -> pa.Table:
    table = pa.concat_tables(read_split(folder, "validation"))
    target = catalogue.index(table["target"].to_numpy()).astype(np.int32)
    lists = {name: _as_indexes(table[name], catalogue) for name in ("history", "seen")}
    return pa.table({"user_id": table["user_id"], **lists, "target": target, "fold": _folds(table, config)})


def _folds(table: pa.Table, config: Config) -> np.ndarray:
    return fold_of(table["user_id"].to_pylist(), config.oracle.folds, config.seed)


def _as_indexes(lists: pa.ChunkedArray, catalogue: Catalogue) -> pa.Array:
    whole = lists.combine_chunks()
    items = catalogue.index(whole.flatten().to_numpy(zero_copy_only=False)).astype(np.int32)
    lengths = pc.list_value_length(whole).to_numpy(zero_copy_only=False)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(offsets, items)


def _best_line(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return next(line for line in reversed(lines) if line["best"]), lines[-1]
