"""Freely generated answers as titles of the catalogue: token by token, or not at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from rosepo.data.prompts import PromptBuilder


def completions_index(builder: PromptBuilder) -> dict[bytes, int]:
    """Item of every completion (title and EOS), by the bytes of its token ids as int32."""
    return {builder.completion(item).astype(np.int32).tobytes(): item for item in range(len(builder))}


def match_titles(
    generated: Sequence[Sequence[Sequence[int]]],
    logps: Sequence[Sequence[float]],
    index: Mapping[bytes, int],
    excluded: Sequence[np.ndarray],
    k: int,
) -> tuple[np.ndarray, np.ndarray, int]:
    """The best `k` titles among what was generated after each prompt; equal scores in order of item index.

    Only an answer with exactly a title's tokens and the EOS behind them is a title. Of one that was written twice, the
    higher log-probability counts.

    Args:
        generated: token ids of every answer of N prompts, the EOS among them where one ended it.
        logps: log π of the same answers, a sum over their tokens, natural logarithm.
        index: see `completions_index`.
        excluded: N int arrays of item indexes that must not be answered.
        k: answers a prompt.

    Returns:
        Item indexes int64 [N, k], -1 behind the last; scores float32 [N, k], -inf there; and how many of all answers
        were no title of the catalogue.
    """
    items = np.full((len(generated), k), -1, dtype=np.int64)
    scores = np.full((len(generated), k), -np.inf, dtype=np.float32)
    unknown = 0
    for row, answers in enumerate(generated):
        taken = set(excluded[row].tolist())
        best: dict[int, np.float32] = {}
        for tokens, logp in zip(answers, logps[row], strict=True):
            item = index.get(np.asarray(tokens, dtype=np.int32).tobytes())
            if item is None:
                unknown += 1
            elif item not in taken:
                best[item] = max(np.float32(logp), best.get(item, np.float32(-np.inf)))
        ranked = sorted(best, key=lambda item: (-best[item], item))[:k]
        items[row, : len(ranked)] = ranked
        scores[row, : len(ranked)] = [best[item] for item in ranked]
    return items, scores, unknown
