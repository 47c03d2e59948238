"""The model's own wrong answers where its prompts list what can be answered."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from rosepo.data.random import Draws
from rosepo.lm.titles.candidate_scores import best_candidates
from rosepo.sampling.strategies.example_batch import Examples
from rosepo.sampling.strategies.strategies import pick_from_top

CandidateScores = Callable[[Sequence[np.ndarray], np.ndarray], np.ndarray]
"""log π float32 [N, C] of items int64 [N, C] after N prompts, under the policy."""


class WrongCandidates:
    """`self_hard` for prompts that list candidates: a random one of the `top` that the model finds most likely there.

    Args:
        scores: of the policy.
        top: candidates that each pick chooses from; 1 takes the hardest.
    """

    def __init__(self, scores: CandidateScores, top: int) -> None:
        self.scores, self.top = scores, top

    def __call__(self, examples: Examples, count: int, draws: Draws) -> np.ndarray:
        candidates = examples.candidates
        if examples.prompts is None or candidates is None:
            raise ValueError("self_hard needs the examples' prompts and the candidates that they list")
        allowed = ~np.stack([examples.excluded.holds(column) for column in candidates.T], axis=1)
        scores = self.scores(examples.prompts, candidates)
        ranked, _ = best_candidates(candidates, scores, allowed, self.top + count - 1)
        return pick_from_top(ranked, self.top, count, draws)
