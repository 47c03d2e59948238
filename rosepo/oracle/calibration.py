"""Whether an oracle prefers what users chose: scores on validation, the temperature that calibrates them, how well.

The way tau is fitted is this project's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from scipy.optimize import minimize_scalar
from scipy.special import expit

from rosepo.data.item_columns import item_lists, items_of
from rosepo.data.seen import read_split
from rosepo.oracle.protocol import Scorer
from rosepo.utils.console import Progress, echo

NEGATIVES = 20
"""Items drawn beside each validation target to fit tau on."""
CALIBRATION_FILE = "calibration.json"
TAU_BOUNDS = (1e-3, 1e3)
"""Where tau is looked for. At the upper bound the oracle knows nothing about the order of the pairs."""
_ROWS = 512


def validation_table(folder: Path) -> pa.Table:
    """The validation examples: example_id, user_id, history, seen (lists of item indexes), target (index)."""
    return pa.concat_tables(read_split(folder, "validation"))


def validation_arrays(table: pa.Table) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray]:
    """Histories and what was seen, as item indexes int32, and targets, int64."""
    return item_lists(table, "history", np.int32), item_lists(table, "seen", np.int32), items_of(table, "target")


def score_validation(
    scorer: Scorer, validation: pa.Table, n_items: int, seed: int, progress: Progress | None = None
) -> np.ndarray:
    """Raw scores float32 [N, 1 + NEGATIVES] of every validation target and of other items drawn evenly beside it.

    Args:
        validation: from `validation_table`.
    """
    histories, _, targets = validation_arrays(validation)
    users = validation["user_id"].to_pylist()
    rng = np.random.default_rng([seed, len(targets)])
    drawn = rng.integers(0, n_items, size=(len(targets), NEGATIVES))
    # The target itself is no other item; its neighbour is.
    drawn = np.where(drawn == targets[:, None], (drawn + 1) % n_items, drawn)
    items = np.concatenate([targets[:, None], drawn], axis=1).astype(np.int64)
    scores = np.empty(items.shape, dtype=np.float32)
    for low in range(0, len(items), _ROWS):
        rows = slice(low, low + _ROWS)
        scores[rows] = scorer.score(users[rows], histories[rows], items[rows])
        if progress is not None:
            progress.update(len(users[rows]))
    return scores


def calibrate_preferences(chosen: np.ndarray, other: np.ndarray, tau: float | None) -> dict[str, Any]:
    """How far an oracle can be believed that the chosen item is preferred to another one.

    Args:
        chosen: float [n], n ≥ 1, raw scores of targets.
        other: float [n, m], raw scores of other items of the same examples.
        tau: None fits it.

    Returns:
        tau, auc (ties half), calibration_error, validation_pairs, and `calibration`, from `reliability`.
    """
    margins = np.asarray(chosen, np.float64)[:, None] - other
    if tau is None:
        tau = fit_tau(margins)
        if tau > 0.99 * TAU_BOUNDS[1]:
            echo(
                "  the oracle tells what users chose from other titles no better than chance: every epsilon will be"
                " near 1/2 and every target even, so that there is nothing to align with; train it longer"
                " (oracle.max_epochs), or give another one (oracle.kind)"
            )
    found = reliability(margins / tau)
    return {
        "tau": tau,
        "auc": float((margins > 0).mean() + 0.5 * (margins == 0).mean()),
        "calibration_error": found["error"],
        "validation_pairs": int(margins.size),
        "calibration": found,
    }


def log_loss(margins: np.ndarray, tau: float) -> float:
    """Mean of `-log sigmoid(margin / tau)` over margins float [...]."""
    return float(np.logaddexp(0.0, -margins / tau).mean())


def fit_tau(margins: np.ndarray) -> float:
    """The tau that minimises `log_loss`, within `TAU_BOUNDS`.

    The loss is convex in 1 / tau, hence has one minimum in log tau, which a bounded scalar search finds.

    Args:
        margins: float64 [...], raw score of a validation target minus that of another item after the same history.

    Raises:
        ValueError: no pairs, or scores that are not finite.
    """
    if not margins.size or not np.isfinite(margins).all():
        raise ValueError(f"tau cannot be fitted on {margins.size} pairs, all of which need finite scores")
    low, high = np.log(TAU_BOUNDS)
    found = minimize_scalar(
        lambda log_tau: log_loss(margins, float(np.exp(log_tau))),
        bounds=(low, high),
        method="bounded",
        options={"xatol": 1e-6},
    )
    # A bounded search only comes near a bound; where the loss falls all the way the bound itself is the answer.
    candidates = [float(np.exp(found.x)), *TAU_BOUNDS]
    return min(candidates, key=lambda tau: log_loss(margins, tau))


def reliability(margins: np.ndarray, bins: int = 10) -> dict[str, Any]:
    """How often the item that the oracle prefers is the right one, against how sure the oracle says it is.

    Args:
        margins: float [...], calibrated score of the right item minus that of another, of any number of pairs.
        bins: of confidence, evenly over [1/2, 1].

    Returns:
        `bins` rows {low, high, confidence, accuracy, pairs}, empty bins left out, and `error`, the expected
        calibration error (arXiv 1706.04599): the gap between the two, averaged over pairs.
    """
    margins = np.asarray(margins, dtype=np.float64).ravel()
    confidence = expit(np.abs(margins))
    right = np.where(margins == 0, 0.5, margins > 0)
    edges = np.linspace(0.5, 1.0, bins + 1)
    place = np.clip(np.searchsorted(edges, confidence, side="right") - 1, 0, bins - 1)
    rows = []
    for number in np.unique(place):
        here = place == number
        rows.append(
            {
                "low": float(edges[number]),
                "high": float(edges[number + 1]),
                "confidence": float(confidence[here].mean()),
                "accuracy": float(right[here].mean()),
                "pairs": int(here.sum()),
            }
        )
    error = sum(row["pairs"] * abs(row["accuracy"] - row["confidence"]) for row in rows) / max(len(margins), 1)
    return {"bins": rows, "error": float(error)}
