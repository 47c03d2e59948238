"""What every objective is made of: rewards of a group's completions, margins of its pairs, metrics."""

from __future__ import annotations

import torch
from torch import Tensor

Metrics = dict[str, Tensor]


def log_ratios(policy_logps: Tensor, ref_logps: Tensor) -> Tensor:
    """``r = policy_logps - ref_logps``, [G, 1 + K], at least float32: sums over tokens lose their differences in
    bfloat16.

    Raises:
        ValueError: shapes that differ, or a group without a rejected completion.
    """
    if policy_logps.shape != ref_logps.shape:
        raise ValueError(
            "log-probabilities of the policy and of the reference must be of one shape: "
            f"{tuple(policy_logps.shape)}, {tuple(ref_logps.shape)}"
        )
    return to_float32(policy_logps) - to_float32(ref_logps)


def to_float32(logps: Tensor) -> Tensor:
    """Log-probabilities of groups, [G, 1 + K], in float32, or float64 where they are.

    Raises:
        ValueError: another shape, or a group without a rejected completion.
    """
    if logps.dim() != 2 or logps.shape[1] < 2:
        raise ValueError(f"log-probabilities must be [G, 1 + K] with K >= 1: {tuple(logps.shape)}")
    return logps.to(torch.promote_types(logps.dtype, torch.float32))


def pair_margins(rewards: Tensor) -> Tensor:
    """Reward of the chosen completion minus that of each rejected one, [G, K], from rewards [G, 1 + K]."""
    return rewards[:, :1] - rewards[:, 1:]


@torch.no_grad()
def reward_margins(policy_logps: Tensor, ref_logps: Tensor, beta: float) -> Tensor:
    """``u = beta * (r_chosen - r_rejected)`` of every pair without gradient, [G, K]; arguments as in `pairwise`."""
    return pair_margins(beta * log_ratios(policy_logps, ref_logps))


@torch.no_grad()
def reward_metrics(rewards: Tensor) -> Metrics:
    """Of rewards [G, 1 + K], without gradient: `reward_chosen` [G], `reward_rejected` [G, K], `margin` [G, K] and
    `accuracy` [G, K] (1 right, 1/2 a tie)."""
    margins = pair_margins(rewards)
    return {
        "reward_chosen": rewards[:, 0].detach(),
        "reward_rejected": rewards[:, 1:].detach(),
        "margin": margins.detach(),
        "accuracy": (margins > 0).to(margins.dtype) + 0.5 * (margins == 0).to(margins.dtype),
    }
