"""Likelihoods of a group's completions: what is learned of titles without comparing them with others.

    chosen_nll   -policy_logps_chosen
    distill      -sum_i w_i policy_logps_i

Fine-tuning goes on with the first alone (`align.loss=sft`), and `align.sft_weight` adds it to any other loss. The
second is the cross-entropy to the oracle's distribution over the catalogue, estimated from titles drawn from it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rosepo.objectives.rewards import Metrics, to_float32


def chosen_nll(policy_logps: Tensor) -> Tensor:
    """Negative log-likelihood of the chosen completion, [G], from policy_logps [G, 1 + K], K ≥ 0: the loss of
    fine-tuning, which RPO (arXiv 2405.16436) adds to DPO's. At least float32."""
    return -policy_logps[:, 0].to(torch.promote_types(policy_logps.dtype, torch.float32))


def no_preference(policy_logps: Tensor) -> tuple[Tensor, Metrics]:
    """A loss of 0 for every group [G], and no metrics: fine-tuning, whose `chosen_nll` is added to it."""
    return 0.0 * chosen_nll(policy_logps), {}


def distill(policy_logps: Tensor, weights: Tensor) -> tuple[Tensor, Metrics]:
    """Weighted negative log-likelihood of a group's completions.

    Args:
        policy_logps: [G, 1 + K], summed over completion tokens, chosen first; carries the gradient.
        weights: [G, 1 + K], see `drawn_weights`.

    Returns:
        Loss [G], at least float32, and no metrics: nothing is compared.
    """
    logps = to_float32(policy_logps)
    return -(weights.to(logps.dtype) * logps).sum(dim=1), {}


def drawn_weights(scores: Tensor, rest: Tensor) -> Tensor:
    """Weights with which a sum over a group's titles estimates a mean over the catalogue without bias.

    The distribution is ``p = softmax(f)`` over the target w and the titles that can be drawn, C. The target is in every
    group, so its part is exact. The others' is estimated from y_1 … y_K, drawn from ``p' = exp(f - rest)`` in order,
    none twice. For any k

        sum_{j < k} p'(y_j) g(y_j) + (1 - sum_{j < k} p'(y_j)) g(y_k)

    has the mean ``sum_C p' g`` (Des Raj 1956, "Some estimators in sampling with varying probabilities without
    replacement"): y_k is drawn from what the titles before it leave. This is the average over k = 1 … K:

        w_0 = p(w),   w_k = (1 - p(w)) [(K - k) p'(y_k) + 1 - sum_{j < k} p'(y_j)] / K

    No weight is negative, and they sum to 1.

    Args:
        scores: f, [G, 1 + K]: of the target, then of y_1 … y_K in the order in which they were drawn.
        rest: [G], ``log sum_C exp f``.

    Returns:
        [G, 1 + K].
    """
    margin = scores[:, :1] - rest[:, None]
    shares = torch.exp(scores[:, 1:] - rest[:, None])
    left = (1.0 - (shares.cumsum(dim=1) - shares)).clamp(min=0.0)
    count = shares.shape[1]
    behind = torch.arange(count - 1, -1, -1, device=scores.device)
    drawn = (behind * shares + left) / count
    # sigmoid(-x), not 1 - sigmoid(x): an oracle that is sure of the target leaves the others little, but not 0.
    return torch.cat([torch.sigmoid(margin), torch.sigmoid(-margin) * drawn], dim=1)
