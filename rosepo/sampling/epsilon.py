"""From the oracle's raw scores to the smoothing of each pair, and the temperature that calibrates them.

    epsilon = min(CEILING, sigmoid(-(f(H, chosen) - f(H, rejected)) / tau))

The oracle as the source of epsilon is RosePO's (arXiv 2410.12519); this formula and the way tau is fitted are this
project's. The ceiling keeps epsilon below one half; the stricter `align.epsilon_max` is applied where pairs are
trained on.
"""

from __future__ import annotations

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


def _margins(chosen: np.ndarray, other: np.ndarray) -> np.ndarray:
    chosen, other = np.asarray(chosen, dtype=np.float64), np.asarray(other, dtype=np.float64)
    return chosen[:, None] - other.reshape(len(chosen), -1 if other.size else 0)
