"""Log-probability of target tokens from logits, with one pass over the logits less than autograd's own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class TargetLogps(torch.autograd.Function):
    """``log_softmax(logits)[source, targets]``, taken in float32.

    Keeps the log-probabilities of all tokens, and turns them into the gradient in place: no gradient of the gathered
    ones is spread over a second table of [P, V]. Backward can run once.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, source: Tensor, targets: Tensor) -> Tensor:
        """logits [P, V] of any float type; source, targets int64 [T]. Returns float32 [T] (float64 stays float64)."""
        logps = torch.log_softmax(logits, dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(logps, source, targets)
            ctx.logits_dtype = logits.dtype
        return logps[source, targets]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        logps, source, targets = ctx.saved_tensors
        weight = torch.zeros(len(logps), dtype=logps.dtype, device=logps.device)
        weight.index_add_(0, source, gradient)
        spread = logps.exp_().mul_(-weight[:, None])
        spread.index_put_((source, targets), gradient, accumulate=True)
        return spread.to(ctx.logits_dtype), None, None
