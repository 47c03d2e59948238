"""Log-probability of target tokens from logits, with one pass over the logits less than autograd's own."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from rosepo.lm.rows.partitioned import most_of_ranks

MAX_LOGITS = 2**27
"""Logits held at once where nothing else is said."""


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


def token_logps(
    head: Callable[[torch.Tensor], torch.Tensor],
    hidden: torch.Tensor,
    source: torch.Tensor,
    targets: torch.Tensor,
    max_logits: int = MAX_LOGITS,
    together: bool = False,
    source_on_host: torch.Tensor | None = None,
) -> torch.Tensor:
    """Log-probability of every target, float32 [T]: its logit minus the logsumexp of all, taken in float32.

    Args:
        head: the output layer, [n, d] → logits [n, V].
        hidden: [P, d], one state for every position that predicts something.
        source: int64 [T], never decreasing: the position that predicts each target. Several targets may share one.
        targets: int64 [T].
        max_logits: logits held at once; more are computed in chunks and again in the backward pass.
        together: whether all ranks take as many chunks as the one that needs most, some of them empty: where the
            weights are in parts, each call of `head` gathers them, and takes all ranks.
        source_on_host: `source` on the CPU, where chunks are found in it without waiting for the device.
    """
    vocabulary = int(getattr(head, "out_features", 0) or 2**17)
    n_chunks = math.ceil(len(hidden) / max(1, max_logits // vocabulary))
    if together:
        n_chunks = most_of_ranks(n_chunks)
    if n_chunks <= 1:
        return _chunk_logps(head, hidden, source, targets)
    edges = [len(hidden) * place // n_chunks for place in range(n_chunks + 1)]
    known = source if source_on_host is None else source_on_host
    bounds = torch.searchsorted(known, torch.tensor(edges, device=known.device)).tolist()
    chunks = []
    for (first, last), (low, high) in zip(itertools.pairwise(edges), itertools.pairwise(bounds), strict=True):
        inputs = (head, hidden[first:last], source[low:high] - first, targets[low:high])
        chunks.append(cast(torch.Tensor, checkpoint(_chunk_logps, *inputs, use_reentrant=False)))
    return torch.cat(chunks)


def _chunk_logps(
    head: Callable[[torch.Tensor], torch.Tensor], hidden: torch.Tensor, source: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    return cast(torch.Tensor, TargetLogps.apply(head(hidden), source, targets))
