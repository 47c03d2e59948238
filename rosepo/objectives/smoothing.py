"""From oracle scores to smoothing: epsilon of a pair, target distribution of a group.

Scores are calibrated logits of the preference oracle (raw scores divided by its temperature tau), so that
``sigmoid(f_chosen - f_rejected)`` is the oracle's chance that the pair's order is right. The oracle as the source of
epsilon is RosePO's (arXiv 2410.12519); these formulas are this project's.
"""

from __future__ import annotations

import torch
from torch import Tensor


def oracle_epsilon(scores: Tensor, maximum: float) -> Tensor:
    """``min(maximum, sigmoid(-(f_chosen - f_rejected)))`` for every pair of a group.

    Args:
        scores: [G, 1 + K], chosen first.
        maximum: in [0, 1/2).

    Returns:
        [G, K], dtype of scores.
    """
    return clamp_epsilon(torch.sigmoid(scores[:, 1:] - scores[:, :1]), maximum)


def clamp_epsilon(epsilon: Tensor, maximum: float) -> Tensor:
    """Epsilon in [0, maximum], any shape.

    Raises:
        ValueError: a maximum outside [0, 1/2): from 1/2 on the rejected title would be preferred.
    """
    if not 0.0 <= maximum < 0.5:
        raise ValueError(f"the largest epsilon must lie in [0, 0.5), not {maximum}")
    return epsilon.clamp(min=0.0, max=maximum)


def oracle_targets(scores: Tensor, minimum: float) -> Tensor:
    """``q = softmax(f)`` over the group, the chosen title's mass at least `minimum`, the others scaled to the rest.

    Args:
        scores: [G, 1 + K], chosen first.
        minimum: in [0, 1]: 0 is the oracle's own distribution, 1/2 keeps the largest mass on the chosen title, 1 is
            one-hot.

    Returns:
        [G, 1 + K], rows sum to 1.
    """
    if not 0.0 <= minimum <= 1.0:
        raise ValueError(f"the smallest target of the chosen title must lie in [0, 1], not {minimum}")
    # The rejected titles' own softmax times what the chosen one leaves: no division by 1 - q_chosen, which may be 0.
    chosen = torch.softmax(scores, dim=1)[:, :1].clamp(min=minimum)
    return torch.cat([chosen, (1.0 - chosen) * torch.softmax(scores[:, 1:], dim=1)], dim=1)
