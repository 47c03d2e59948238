"""The smoothed preference objective (RosePO, arXiv 2410.12519), pairwise and over whole groups.

Both functions are pure. They take the log-probabilities of a group's completions, the chosen one first, and return a
loss and metrics for every group; the caller sums and divides. With ``r = policy_logps - ref_logps`` and
``u_j = beta * (r_chosen - r_rejected_j)``:

    pairwise   mean_j [ -(1 - epsilon_j) log sigmoid(u_j) - epsilon_j log sigmoid(-u_j) ]
    softmax    -sum_i q_i log softmax(beta * r)_i

``epsilon = 0`` is DPO (arXiv 2305.18290), a one-hot ``q`` is S-DPO (arXiv 2406.09215). The softmax form with the
oracle's distribution as target is this project's own.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

Metrics = dict[str, Tensor]


def pairwise(policy_logps: Tensor, ref_logps: Tensor, epsilon: Tensor, beta: float) -> tuple[Tensor, Metrics]:
    """Smoothed logistic loss, averaged over the K pairs of a group.

    The optimum of a pair is finite, ``u* = log((1 - epsilon) / epsilon)``.

    Args:
        policy_logps: [G, 1 + K], summed over completion tokens, chosen first; carries the gradient.
        ref_logps: [G, 1 + K], the same under the frozen reference.
        epsilon: [G, K] in [0, 1/2), the chance that the pair's order is wrong.
        beta: > 0, strength of the tie to the reference.

    Returns:
        Loss [G], float32 (float64 stays float64), and metrics [G] or [G, K] without gradient, see `_metrics`.
    """
    rewards = _rewards(policy_logps, ref_logps, beta)
    margins = _margins(rewards)
    epsilon = epsilon.to(margins.dtype)
    losses = -(1 - epsilon) * F.logsigmoid(margins) - epsilon * F.logsigmoid(-margins)
    return losses.mean(dim=1), _metrics(rewards, margins)


def softmax(policy_logps: Tensor, ref_logps: Tensor, targets: Tensor, beta: float) -> tuple[Tensor, Metrics]:
    """Cross-entropy between a target distribution over the group and ``softmax(beta * r)``.

    Args:
        policy_logps, ref_logps, beta: as in `pairwise`.
        targets: [G, 1 + K], q, rows sum to 1; chosen first.

    Returns:
        Loss [G] and metrics as in `pairwise`. With K = 1 and q = (1 - epsilon, epsilon) both losses are equal.
    """
    rewards = _rewards(policy_logps, ref_logps, beta)
    targets = targets.to(rewards.dtype)
    # log_softmax subtracts the row's maximum first, so that rewards of any size stay finite.
    losses = -(targets * F.log_softmax(rewards, dim=1)).sum(dim=1)
    return losses, _metrics(rewards, _margins(rewards))


@torch.no_grad()
def reward_margins(policy_logps: Tensor, ref_logps: Tensor, beta: float) -> Tensor:
    """u of every pair without gradient, [G, K]; arguments as in `pairwise`."""
    return _margins(_rewards(policy_logps, ref_logps, beta))


def _margins(rewards: Tensor) -> Tensor:
    return rewards[:, :1] - rewards[:, 1:]


def _rewards(policy_logps: Tensor, ref_logps: Tensor, beta: float) -> Tensor:
    """beta * r, [G, 1 + K], at least float32: sums over tokens lose their differences in bfloat16."""
    if policy_logps.shape != ref_logps.shape or policy_logps.dim() != 2 or policy_logps.shape[1] < 2:
        raise ValueError(
            f"log-probabilities must be [G, 1 + K] with K >= 1: {tuple(policy_logps.shape)}, {tuple(ref_logps.shape)}"
        )
    dtype = torch.promote_types(policy_logps.dtype, torch.float32)
    return beta * (policy_logps.to(dtype) - ref_logps.to(dtype))


@torch.no_grad()
def _metrics(rewards: Tensor, margins: Tensor) -> Metrics:
    """`reward_chosen` [G], `reward_rejected` [G, K], `margin` [G, K] and `accuracy` [G, K] (1 right, 1/2 a tie)."""
    return {
        "reward_chosen": rewards[:, 0].detach(),
        "reward_rejected": rewards[:, 1:].detach(),
        "margin": margins.detach(),
        "accuracy": (margins > 0).to(margins.dtype) + 0.5 * (margins == 0).to(margins.dtype),
    }
