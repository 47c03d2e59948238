"""The strategy `candidates`: what a prompt could have been answered with."""

from __future__ import annotations

import numpy as np

from rosepo.data.random import Draws
from rosepo.lm.titles.candidate_scores import best_candidates
from rosepo.sampling.strategies.example_batch import Examples
from rosepo.sampling.strategies.picking import pick_from_top
from rosepo.sampling.strategies.protocol import Strategy, StrategyInputs


def candidates(examples: Examples, count: int, draws: Draws) -> np.ndarray:
    """One of the prompt's own candidates, as in S-DPO (arXiv 2406.09215); a control."""
    if examples.candidates is None:
        raise ValueError("candidates needs the examples' candidate lists")
    free = ~examples.excluded.holds(examples.candidates)
    # All alike, hence in item order, so that where the target stood in the list tells nothing.
    ranked, _ = best_candidates(examples.candidates, np.zeros(free.shape), free, max(count, free.shape[1]))
    return pick_from_top(ranked, ranked.shape[1], count, draws)


def make_candidates(inputs: StrategyInputs) -> Strategy:
    return candidates
