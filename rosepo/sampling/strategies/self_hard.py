"""The strategy `self_hard`: the model's own wrong answers, out of the catalogue or of what its prompts list."""

from __future__ import annotations

import numpy as np

from rosepo.data.random import Draws
from rosepo.lm.titles.candidate_scores import best_candidates
from rosepo.sampling.strategies.example_batch import Examples
from rosepo.sampling.strategies.picking import pick_from_top
from rosepo.sampling.strategies.protocol import Answers, CandidateScores, Strategy, StrategyInputs


class WrongAnswers:
    """The model's own wrong answers, for helpfulness: a random one of its `top` best titles outside history and target.

    Args:
        decoder: gives ``top + count - 1`` answers an example, or as many as there are.
        top: answers that each pick chooses from; 1 takes the hardest.
    """

    def __init__(self, decoder: Answers, top: int) -> None:
        self.decoder, self.top = decoder, top

    def __call__(self, examples: Examples, count: int, draws: Draws) -> np.ndarray:
        if examples.prompts is None:
            raise ValueError("self_hard needs the examples' prompts")
        ranked, _ = self.decoder.top_k(examples.prompts, examples.excluded.lists(), self.top + count - 1)
        return pick_from_top(ranked, self.top, count, draws)


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
        allowed = ~examples.excluded.holds(candidates)
        scores = self.scores(examples.prompts, candidates)
        ranked, _ = best_candidates(candidates, scores, allowed, self.top + count - 1)
        return pick_from_top(ranked, self.top, count, draws)


def make_self_hard(inputs: StrategyInputs) -> Strategy:
    return wrong_answers(inputs, inputs.option("self_hard_top"), inputs.negatives)


def wrong_answers(inputs: StrategyInputs, top: int, count: int) -> Strategy:
    """`count` of the model's wrong answers, each pick one of the `top` best. Raises ValueError where there is no
    policy."""
    if inputs.listed is not None:
        return WrongCandidates(inputs.listed, top)
    return WrongAnswers(inputs.answers(top + count - 1), top)
