"""What a strategy of rejected sampling is, and what it is made of.

A strategy is any callable ``(examples, count, draws) -> int64 [N, count]``: `count` distinct items for each example,
in the order in which they shall be used, none in its history and none its target, -1 where there are no more. All
randomness comes from `draws` (see `rosepo.data.random`), so that an example's items depend on nothing but the
example.

Those of the table (`rosepo.config.strategies`) are made by `make_…` functions of `StrategyInputs`, in the files beside
this one. One of your own is named in `pairs.strategies` by the import path of its maker, `module:callable`, which is
called with the `Catalogue` in every actor and returns the strategy:

    def newest_first(catalogue):
        def strategy(examples, count, draws):
            ...  # int64 [N, count]; never an item for which examples.excluded says so
        return strategy

The aims of self_hard, semantic and popularity are RosePO's (arXiv 2410.12519); these definitions are this project's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from rosepo.config import PairsConfig
from rosepo.data.catalogue import Catalogue
from rosepo.data.random import Draws
from rosepo.sampling.strategies.example_batch import Examples

MIN_BEAMS = 8
"""A narrower search would miss the model's best titles behind a rare first token."""

Scores = Callable[[Examples, np.ndarray], np.ndarray]
"""Calibrated oracle scores float32 [N, C] of items int64 [N, C] after each example's history."""
CatalogueScores = Callable[[Examples], np.ndarray]
"""Calibrated oracle scores float32 [N, n_items] of every item after each example's history."""
CandidateScores = Callable[[Sequence[np.ndarray], np.ndarray], np.ndarray]
"""log π float32 [N, C] of items int64 [N, C] after N prompts, under the policy."""


class Strategy(Protocol):
    """What the mixture calls."""

    def __call__(self, examples: Examples, count: int, draws: Draws) -> np.ndarray:
        """Distinct items int64 [N, count] for each example, -1 where there are no more."""


class Answers(Protocol):
    """The policy's answers: a `Decoder`, or what generates freely."""

    def top_k(
        self, prompts: Sequence[np.ndarray], excluded: Sequence[np.ndarray], k: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Items int64 [N, k], best first, none of those excluded, -1 behind the last; and scores float32 [N, k]."""


@dataclass(frozen=True)
class StrategyInputs:
    """What a strategy may be made of; of models and tables only what the strategies that are used ask for is there.

    Attributes:
        pairs: the configuration.
        negatives: K, rejected titles an example.
        catalogue: of the examples.
        decoder: what gives the policy's answers, made for a number of beams.
        listed: the policy's scores of candidates, which take the decoder's place where prompts list them.
        scores: the oracle.
        whole: the oracle, asked about the whole catalogue.
        embeddings: NumPy file of the title embeddings float32 [n_items, d].
        device: where titles are compared.
    """

    pairs: PairsConfig
    negatives: int
    catalogue: Catalogue
    decoder: Callable[[int], Answers] | None = None
    listed: CandidateScores | None = None
    scores: Scores | None = None
    whole: CatalogueScores | None = None
    embeddings: Path | None = None
    device: str = "cpu"

    def option(self, key: str) -> Any:
        """The value of an option of a strategy, `self_hard_top`, say."""
        return self.pairs.option(key)

    def answers(self, most: int) -> Answers:
        """What gives at least `most` of the policy's answers. Raises ValueError where there is no policy."""
        if self.decoder is None:
            raise ValueError("a strategy asks the policy, and there is none")
        return self.decoder(max(MIN_BEAMS, most))
