"""Log-probabilities of groups under the reference model: one pass before training, no training engine involved."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from rosepo.evaluation.forward import batch_tokens
from rosepo.training.batch import collate
from rosepo.training.logps import LogpsModel
from rosepo.training.rows import group_row


@torch.inference_mode()
def reference_logps(
    model: LogpsModel,
    prompts: Sequence[np.ndarray],
    completions: Sequence[Sequence[np.ndarray]],
    max_tokens: int | None = None,
) -> list[np.ndarray]:
    """log π(completion | prompt), summed over the completion's tokens, EOS included.

    Each group is one row, its prompt computed once; rows of like length share a batch. How groups are batched is a
    function of the groups given, so equal calls give equal bits.

    Args:
        model: the reference, in eval mode, on the device that it shall run on.
        prompts: N int arrays of token ids.
        completions: N lists of int arrays, each ending in EOS.
        max_tokens: padded tokens in the model at once; None takes what suits the device.

    Returns:
        N arrays float32 [number of completions].
    """
    device = next(model.parameters()).device
    max_tokens = max_tokens or batch_tokens(model)
    rows = [group_row(prompt, ids) for prompt, ids in zip(prompts, completions, strict=True)]
    order = sorted(range(len(rows)), key=lambda index: -len(rows[index]))
    found: list[np.ndarray] = [np.zeros(0, dtype=np.float32)] * len(rows)
    start = 0
    while start < len(order):
        batch = order[start : start + max(1, max_tokens // max(len(rows[order[start]]), 1))]
        sums, _ = model(collate([rows[index] for index in batch]).to(device))
        sizes = np.cumsum([rows[index].n_completions for index in batch])
        for index, part in zip(batch, np.split(sums.float().cpu().numpy(), sizes[:-1]), strict=True):
            found[index] = part
        start += len(batch)
    return found
