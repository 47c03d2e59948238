"""Rankings of an example's own candidates: each of them is scored, nothing is searched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from rosepo.data.prompts import PromptBuilder

if TYPE_CHECKING:
    from rosepo.lm.rows.logps import LogpsModel


def candidate_logps(
    model: LogpsModel, builder: PromptBuilder, prompts: Sequence[np.ndarray], candidates: np.ndarray
) -> np.ndarray:
    """log π(title, EOS | prompt) of every candidate, float32 [N, C], under a model in eval mode on its device.

    Args:
        builder: of the prompts; its completions are the titles.
        prompts: N int arrays of token ids.
        candidates: item indexes int64 [N, C].
    """
    from rosepo.lm.titles.title_scores import reference_logps

    titles = [[builder.completion(item) for item in row] for row in candidates]
    logps = reference_logps(model, prompts, titles)
    return np.stack(logps) if len(logps) else np.zeros(candidates.shape, dtype=np.float32)


def best_candidates(
    candidates: np.ndarray, scores: np.ndarray, allowed: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The best `k` candidates that are allowed; equal scores in order of item index, wherever they stand in the list.

    Args:
        candidates: item indexes int64 [N, C], distinct in a row.
        scores: float32 [N, C].
        allowed: bool [N, C].

    Returns:
        Item indexes int64 [N, k] padded with -1, scores float32 [N, k] padded with -inf.
    """
    scores = np.where(allowed, scores, -np.inf).astype(np.float32)
    order = np.lexsort((candidates, -scores), axis=1)[:, :k]
    ranked = np.take_along_axis(np.where(allowed, candidates, -1), order, axis=1)
    missing = ((0, 0), (0, k - order.shape[1]))
    best = np.take_along_axis(scores, order, axis=1)
    return np.pad(ranked, missing, constant_values=-1), np.pad(best, missing, constant_values=-np.inf)
