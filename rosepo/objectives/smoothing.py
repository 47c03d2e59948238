"""Smoothing in training: the limit on epsilon of a pair, target distribution of a group.

Scores are calibrated logits of the preference oracle (raw scores divided by its temperature tau), so that
``sigmoid(f_chosen - f_rejected)`` is the oracle's chance that the pair's order is right. The oracle as the source of
epsilon is RosePO's (arXiv 2410.12519); these formulas are this project's. `RunningQuantile` serves the smoothing that
needs no oracle (SPA, arXiv 2406.04412).
"""

from __future__ import annotations

from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor


def clamp_epsilon(epsilon: Tensor, maximum: float) -> Tensor:
    """Epsilon in [0, maximum], any shape.

    Raises:
        ValueError: a maximum outside [0, 1/2): from 1/2 on the rejected title would be preferred.
    """
    if not 0.0 <= maximum < 0.5:
        raise ValueError(f"the largest epsilon must lie in [0, 0.5), not {maximum}")
    return epsilon.clamp(min=0.0, max=maximum)


def oracle_targets(scores: Tensor, minimum: float, ref_logps: Tensor | None = None, mix: float = 0.0) -> Tensor:
    """``q = softmax((1 - w) f + w log pi_ref)`` over the group, w = `mix`, the chosen title's mass at least `minimum`,
    the others scaled to the rest.

    Args:
        scores: [G, 1 + K], chosen first.
        minimum: in [0, 1]: 0 is the oracle's own distribution, 1/2 keeps the largest mass on the chosen title, 1 is
            one-hot.
        ref_logps: [G, 1 + K], the reference's log-probabilities; needed where `mix` is not 0.
        mix: in [0, 1]: 0 is the oracle alone, 1/2 the geometric mean of both models, 1 the reference alone.

    Returns:
        [G, 1 + K], rows sum to 1.
    """
    if not 0.0 <= mix <= 1.0:
        raise ValueError(f"the reference's weight in the targets must lie in [0, 1], not {mix}")
    if mix > 0.0:
        if ref_logps is None:
            raise ValueError("a mix with the reference needs its log-probabilities")
        scores = (1.0 - mix) * scores + mix * ref_logps
    if not 0.0 <= minimum <= 1.0:
        raise ValueError(f"the smallest target of the chosen title must lie in [0, 1], not {minimum}")
    # The rejected titles' own softmax times what the chosen one leaves: no division by 1 - q_chosen, which may be 0.
    chosen = torch.softmax(scores, dim=1)[:, :1].clamp(min=minimum)
    return torch.cat([chosen, (1.0 - chosen) * torch.softmax(scores[:, 1:], dim=1)], dim=1)


class RunningQuantile:
    """A quantile of the policy's reward margins that follows training, from sums over whole steps alone.

    Over a step of n margins u, of which b lay below the threshold theta in force, with N, S, Q discounted by d a step:

        N <- d N + n,   S <- d S + sum u,   Q <- d Q + sum u^2
        z <- z + g min(n / N, 1 - d) (q - b / n),   theta <- S / N + z sqrt(Q / N - (S / N)^2)

    Location and scale follow margins that grow, and z, which starts at the normal distribution's quantile, follows
    their shape: stochastic approximation of a quantile (Robbins and Monro, 1951). How a step is split does not matter.

    Attributes:
        threshold: theta; None before the first update, when no pair counts as below.
    """

    DISCOUNT = 0.9
    GAIN = 4.0
    SIZE = 4
    """Numbers in `statistics`."""

    def __init__(self, quantile: float) -> None:
        """
        Args:
            quantile: q in (0, 1).
        """
        if not 0.0 < quantile < 1.0:
            raise ValueError(f"a quantile must lie in (0, 1), not {quantile}")
        self.quantile = quantile
        self.restart()

    def restart(self) -> None:
        """Forget everything seen."""
        self.threshold: float | None = None
        self._shape = NormalDist().inv_cdf(self.quantile)
        self._count = self._total = self._squares = 0.0

    def state(self) -> dict[str, float | None]:
        """All that it has learned, for a checkpoint."""
        return {
            "threshold": self.threshold,
            "shape": self._shape,
            "count": self._count,
            "total": self._total,
            "squares": self._squares,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        self.threshold, self._shape = state["threshold"], state["shape"]
        self._count, self._total, self._squares = state["count"], state["total"], state["squares"]

    def below(self, margins: Tensor) -> Tensor:
        """Bool, shape of margins: those under the threshold in force."""
        return torch.zeros_like(margins, dtype=torch.bool) if self.threshold is None else margins < self.threshold

    def statistics(self, margins: Tensor) -> Tensor:
        """What `update` needs of some of a step's margins, any shape: float64 [4], to be added up over the step."""
        wide = margins.detach().double()
        count = torch.tensor(float(wide.numel()), dtype=wide.dtype, device=wide.device)
        return torch.stack([count, wide.sum(), wide.square().sum(), self.below(margins).sum().double()])

    def update(self, statistics: Tensor) -> None:
        """Move on after a step: `statistics` summed over all its micro-batches and ranks, float64 [4]."""
        count, total, squares, below = statistics.tolist()
        self._count = self.DISCOUNT * self._count + count
        self._total = self.DISCOUNT * self._total + total
        self._squares = self.DISCOUNT * self._squares + squares
        if self.threshold is not None:
            # A short last batch of an epoch says less, and moves less.
            rate = min(count / self._count, 1.0 - self.DISCOUNT)
            self._shape += self.GAIN * rate * (self.quantile - below / count)
        mean = self._total / self._count
        deviation = max(self._squares / self._count - mean * mean, 0.0) ** 0.5
        self.threshold = mean + self._shape * deviation
