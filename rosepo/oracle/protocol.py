"""What an oracle must be able to do, whatever it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

Users = Sequence[int] | Sequence[str] | np.ndarray


class Scorer(Protocol):
    """What the sampling actors, the calibration and the evaluation ask.

    Attributes:
        tau: temperature that makes `sigmoid((score_a - score_b) / tau)` a calibrated preference.
    """

    tau: float

    def score(self, users: Users, histories: Sequence[np.ndarray], items: np.ndarray) -> np.ndarray:
        """Raw scores float32 [B, C], not divided by `tau`, of items int64 [B, C] (item indexes).

        Args:
            users, histories: of the B examples; histories are item indexes, oldest first.
        """
        ...

    def score_all(self, users: Users, histories: Sequence[np.ndarray]) -> np.ndarray:
        """Raw scores float32 [B, n_items] of every item of the catalogue; arguments as those of `score`."""
        ...
