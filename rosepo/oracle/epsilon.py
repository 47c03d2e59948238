"""From the oracle's raw scores to the smoothing of each pair.

    epsilon = min(CEILING, sigmoid(-(f(H, chosen) - f(H, rejected)) / tau))

The oracle as the source of epsilon is RosePO's (arXiv 2410.12519); this formula is this project's. The ceiling keeps
epsilon below one half; the stricter `align.epsilon_max` is applied where pairs are trained on.
"""

from __future__ import annotations

import numpy as np
from scipy.special import expit

CEILING = 0.4999
"""Largest epsilon that is written."""


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
