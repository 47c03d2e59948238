"""Likelihoods of a group's completions: what is learned of titles without comparing them with others.

    chosen_nll   -policy_logps_chosen

Fine-tuning goes on with it alone (`align.loss=sft`), and `align.sft_weight` adds it to any other loss.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rosepo.objectives.rewards import Metrics


def chosen_nll(policy_logps: Tensor) -> Tensor:
    """Negative log-likelihood of the chosen completion, [G], from policy_logps [G, 1 + K], K ≥ 0: the loss of
    fine-tuning, which RPO (arXiv 2405.16436) adds to DPO's. At least float32."""
    return -policy_logps[:, 0].to(torch.promote_types(policy_logps.dtype, torch.float32))


def no_preference(policy_logps: Tensor) -> tuple[Tensor, Metrics]:
    """A loss of 0 for every group [G], and no metrics: fine-tuning, whose `chosen_nll` is added to it."""
    return 0.0 * chosen_nll(policy_logps), {}
