"""Whether an oracle prefers what users chose: scores on validation, the temperature that calibrates them, how well.

The way tau is fitted is this project's.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import expit

from rosepo.oracle.log import Validation
from rosepo.oracle.protocol import Scorer
from rosepo.utils.console import echo

NEGATIVES = 20
"""Items drawn beside each validation target to fit tau on."""
CALIBRATION_FILE = "calibration.json"
TAU_BOUNDS = (1e-3, 1e3)
"""Where tau is looked for. At the upper bound the oracle knows nothing about the order of the pairs."""
_ROWS = 512


def score_batches(
    scorer: Scorer, validation: Validation, n_items: int, seed: int, rank: int = 0, world: int = 1
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Raw scores of validation targets and of other items drawn evenly beside them: rows int64 [B] of the examples, and
    float32 [B, 1 + NEGATIVES], the target's first.

    Args:
        rank, world: every `world`-th batch is scored, from number `rank` on.
    """
    rng = np.random.default_rng([seed, len(validation)])
    for number, low in enumerate(range(0, len(validation), _ROWS)):
        rows = np.arange(low, min(low + _ROWS, len(validation)))
        drawn = rng.integers(0, n_items, size=(len(rows), NEGATIVES))
        if number % world != rank:
            continue
        targets = validation.targets[rows, None]
        # The target itself is no other item; its neighbour is.
        drawn = np.where(drawn == targets, (drawn + 1) % n_items, drawn)
        items = np.concatenate([targets, drawn], axis=1).astype(np.int64)
        users = validation.users.slice(low, len(rows)).to_pylist()
        yield rows, scorer.score(users, validation.histories.rows(rows), items)


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
