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

from rosepo.objectives.rewards import Metrics, log_ratios, pair_margins, reward_metrics


def pairwise(policy_logps: Tensor, ref_logps: Tensor, epsilon: Tensor, beta: float) -> tuple[Tensor, Metrics]:
    """Smoothed logistic loss, averaged over the K pairs of a group.

    The optimum of a pair is finite, ``u* = log((1 - epsilon) / epsilon)``.

    Args:
        policy_logps: [G, 1 + K], summed over completion tokens, chosen first; carries the gradient.
        ref_logps: [G, 1 + K], the same under the frozen reference.
        epsilon: [G, K] in [0, 1/2), the chance that the pair's order is wrong.
        beta: > 0, strength of the tie to the reference.

    Returns:
        Loss [G], float32 (float64 stays float64), and metrics [G] or [G, K] without gradient: those of
        `reward_metrics`, and `target_kl` [G], by how much the loss is above the least that its targets allow.

    Raises:
        ValueError: see `log_ratios`.
    """
    rewards = beta * log_ratios(policy_logps, ref_logps)
    margins = pair_margins(rewards)
    epsilon = epsilon.to(margins.dtype)
    losses = -(1 - epsilon) * F.logsigmoid(margins) - epsilon * F.logsigmoid(-margins)
    least = torch.special.entr(epsilon) + torch.special.entr(1 - epsilon)
    return losses.mean(dim=1), reward_metrics(rewards) | {"target_kl": (losses - least).mean(dim=1).detach()}


def softmax(policy_logps: Tensor, ref_logps: Tensor, targets: Tensor, beta: float) -> tuple[Tensor, Metrics]:
    """Cross-entropy between a target distribution over the group and ``softmax(beta * r)``.

    Args:
        policy_logps, ref_logps, beta: as in `pairwise`.
        targets: [G, 1 + K], q, rows sum to 1; chosen first.

    Returns:
        Loss [G] and metrics as in `pairwise`. With K = 1 and q = (1 - epsilon, epsilon) both losses are equal.
    """
    rewards = beta * log_ratios(policy_logps, ref_logps)
    targets = targets.to(rewards.dtype)
    # log_softmax subtracts the row's maximum first, so that rewards of any size stay finite.
    losses = -(targets * F.log_softmax(rewards, dim=1)).sum(dim=1)
    least = torch.special.entr(targets).sum(dim=1)
    return losses, reward_metrics(rewards) | {"target_kl": (losses - least).detach()}
