"""Rankings of an example's own candidates: each of them is scored, nothing is searched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from rosepo.data.prompts import PromptBuilder

if TYPE_CHECKING:
    from rosepo.evaluation.rankings import Batch
    from rosepo.lm.model.model_folder import Recommender
    from rosepo.lm.rows.logps import LogpsModel
    from rosepo.lm.titles.beam_search import Decoder


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


def rank_batch(
    recommender: Recommender, decoder: Decoder, batch: Batch, k: int
) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """A model's `k` best items for each example: of its candidates where the batch has them, else of the catalogue.

    Args:
        decoder: searches the catalogue, on the recommender's model.

    Returns:
        Item indexes int64 [B, k] padded with -1, scores float32 [B, k] padded with -inf, and how many of its oldest
        items each history had no room for.

    Raises:
        UserError: the model's prompts list candidates, and the batch has none.
    """
    from rosepo.lm.rows.logps import LogpsModel

    builder = recommender.builder
    newest = [history[-recommender.max_history :] for history in batch.histories]
    prompts, left_out = builder.prompts(newest, batch.candidates)
    if batch.candidates is None:
        return *decoder.top_k(prompts, batch.seen, k), left_out
    scores = candidate_logps(LogpsModel(recommender.model), builder, prompts, batch.candidates)
    return *best_candidates(batch.candidates, scores, np.ones(scores.shape, dtype=bool), k), left_out


def restricted(scores: np.ndarray, candidates: np.ndarray | None) -> np.ndarray:
    """Scores float [N, n_items] of the catalogue, -inf outside the candidates int64 [N, C]; None lets all compete."""
    if candidates is None:
        return scores
    kept = np.full(scores.shape, -np.inf)
    np.put_along_axis(kept, candidates, np.take_along_axis(scores, candidates, axis=1), axis=1)
    return kept
