"""From the oracle's raw scores to the smoothing of each pair, and the temperature that calibrates them.

    epsilon = min(CEILING, sigmoid(-(f(H, chosen) - f(H, rejected)) / tau))

The oracle as the source of epsilon is RosePO's (arXiv 2410.12519); this formula and the way tau is fitted are this
project's. The ceiling keeps epsilon below one half; the stricter `align.epsilon_max` is applied where pairs are
trained on.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import expit

CEILING = 0.4999
"""Largest epsilon that is written."""
TAU_BOUNDS = (1e-3, 1e3)
"""Where tau is looked for. At the upper bound the oracle knows nothing about the order of the pairs."""


def calibrate(scores: np.ndarray, tau: float) -> np.ndarray:
    """Scores as logits of preference: `scores / tau`, float32, any shape."""
    return (np.asarray(scores, dtype=np.float64) / tau).astype(np.float32)


def epsilon(calibrated: np.ndarray, ceiling: float = CEILING) -> np.ndarray:
    """Smoothing of every pair of a group.

    Args:
        calibrated: float [N, 1 + K], calibrated scores, chosen first.
        ceiling: in [0, 1/2).

    Returns:
        float32 [N, K] in [0, ceiling].
    """
    calibrated = np.asarray(calibrated, dtype=np.float64)
    clamped = np.minimum(expit(calibrated[:, 1:] - calibrated[:, :1]), ceiling).astype(np.float32)
    # Rounding to float32 may have gone up.
    return np.minimum(clamped, np.nextafter(np.float32(ceiling), np.float32(0)))


def log_loss(chosen: np.ndarray, other: np.ndarray, tau: float) -> float:
    """Mean of `-log sigmoid((chosen - other) / tau)` over raw scores float [n] and [n] or [n, m]."""
    return float(np.logaddexp(0.0, -_margins(chosen, other) / tau).mean())


def fit_tau(chosen: np.ndarray, other: np.ndarray) -> float:
    """The tau that minimises `log_loss`, within `TAU_BOUNDS`.

    The loss is convex in 1 / tau, hence has one minimum in log tau, which a bounded scalar search finds.

    Args:
        chosen: float [n], raw scores of validation targets.
        other: float [n] or [n, m], raw scores of other items after the same histories.

    Raises:
        ValueError: no pairs, or scores that are not finite.
    """
    margins = _margins(chosen, other)
    if not margins.size or not np.isfinite(margins).all():
        raise ValueError(f"tau cannot be fitted on {margins.size} pairs, all of which need finite scores")
    low, high = np.log(TAU_BOUNDS)
    found = minimize_scalar(
        lambda log_tau: log_loss(chosen, other, float(np.exp(log_tau))),
        bounds=(low, high),
        method="bounded",
        options={"xatol": 1e-6},
    )
    # A bounded search only comes near a bound; where the loss falls all the way the bound itself is the answer.
    candidates = [float(np.exp(found.x)), *TAU_BOUNDS]
    return min(candidates, key=lambda tau: log_loss(chosen, other, tau))


def calibration(margins: np.ndarray, bins: int = 10) -> dict[str, Any]:
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


def _margins(chosen: np.ndarray, other: np.ndarray) -> np.ndarray:
    chosen, other = np.asarray(chosen, dtype=np.float64), np.asarray(other, dtype=np.float64)
    return chosen[:, None] - other.reshape(len(chosen), -1 if other.size else 0)
