"""Log-probability of target tokens from logits, with one pass over the logits less than autograd's own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class TargetLogps(torch.autograd.Function):
    """``logits[source, targets] - logsumexp(logits)[source]``, taken in float32.

    Keeps the probabilities, and turns them into the gradient in place: softmax is computed once, and no gradient of the
    gathered logits is spread over a second table of [P, V]. Backward can run once.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, source: Tensor, targets: Tensor) -> Tensor:
        """logits [P, V] of any float type; source, targets int64 [T]. Returns float32 [T] (float64 stays float64)."""
        dtype = torch.promote_types(logits.dtype, torch.float32)
        highest = logits.amax(dim=-1, keepdim=True).to(dtype)
        probabilities = (logits - highest).exp_() if logits.dtype == dtype else logits.to(dtype).sub_(highest).exp_()
        total = probabilities.sum(dim=-1, keepdim=True)
        normaliser = (highest + total.log()).squeeze(-1)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(probabilities.div_(total), source, targets)
            ctx.logits_dtype = logits.dtype
        return logits[source, targets].to(dtype) - normaliser[source]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        probabilities, source, targets = ctx.saved_tensors
        weight = torch.zeros(len(probabilities), dtype=probabilities.dtype, device=probabilities.device)
        weight.index_add_(0, source, gradient)
        spread = probabilities.mul_(-weight[:, None])
        spread.index_put_((source, targets), gradient, accumulate=True)
        return spread.to(ctx.logits_dtype), None, None
