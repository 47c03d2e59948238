"""The strategy `candidates`: what a prompt could have been answered with."""

from __future__ import annotations

import numpy as np

from rosepo.data.random import Draws
from rosepo.sampling.strategies.example_batch import Examples
from rosepo.sampling.strategies.picking import pick_from_top
from rosepo.sampling.strategies.protocol import Strategy, StrategyInputs


class Candidates:
    """One of the prompt's own candidates, as in S-DPO (arXiv 2406.09215); a control."""

    def __call__(self, examples: Examples, count: int, draws: Draws) -> np.ndarray:
        if examples.candidates is None:
            raise ValueError("candidates needs the examples' candidate lists")
        # In item order, so that where the target stood in the list tells nothing.
        lists = np.sort(examples.candidates, axis=1)
        free = ~np.stack([examples.excluded.holds(column) for column in lists.T], axis=1)
        order = np.argsort(~free, axis=1, kind="stable")
        ranked = np.where(np.take_along_axis(free, order, axis=1), np.take_along_axis(lists, order, axis=1), -1)
        if ranked.shape[1] < count:
            ranked = np.pad(ranked, ((0, 0), (0, count - ranked.shape[1])), constant_values=-1)
        return pick_from_top(ranked, ranked.shape[1], count, draws)


def make_candidates(inputs: StrategyInputs) -> Strategy:
    return Candidates()
