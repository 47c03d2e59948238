"""Chances in two bytes each: their logarithms, so that small ones are kept as well as large ones.

Half precision has 11 bits near 1, and ever fewer below 6e-5, where the chances of 65,000 titles lie.
"""

from __future__ import annotations

import numpy as np

STEPS = 1024
"""Codes a nat: a share that is read differs from the one written by a factor of exp(1 / 2048) at most, 0.05 %."""
LEAST = -65_534 / STEPS
"""The lowest log-share, about -64 nats; what is below it, and above 0, is read as this."""


def to_codes(log_shares: np.ndarray) -> np.ndarray:
    """uint16 codes, of the same shape, of log-shares (at most 0; -inf is a share of 0, whose code is 0)."""
    held = np.clip(log_shares, LEAST, 0.0)
    return np.where(np.isneginf(log_shares), 0, 1 + np.rint(-held * STEPS)).astype(np.uint16)


def from_codes(codes: np.ndarray) -> np.ndarray:
    """The shares, float64, of uint16 codes."""
    return np.where(codes == 0, 0.0, np.exp((1.0 - codes.astype(np.float64)) / STEPS))
