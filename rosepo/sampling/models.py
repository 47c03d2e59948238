"""The models that an actor asks: the policy that answers, the reference, the oracle."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch

from rosepo.data.catalogue import Catalogue
from rosepo.lm.model.model_folder import load_builder, load_recommender
from rosepo.lm.rows.logps import LogpsModel
from rosepo.lm.titles.beam_search import Decoder
from rosepo.lm.titles.candidate_scores import candidate_logps
from rosepo.oracle.epsilon import calibrate
from rosepo.oracle.load import load_scorer
from rosepo.sampling.scoring import GroupScorer
from rosepo.sampling.strategies.example_batch import Examples
from rosepo.sampling.strategies.protocol import Answers, CandidateScores, StrategyInputs
from rosepo.sampling.strategies.vllm_engine import VllmDecoder

if TYPE_CHECKING:
    from rosepo.sampling.settings import ActorSettings


class Models:
    """Those that the settings need, on their device, each loaded once.

    Attributes:
        builder: the policy's prompts.
    """

    def __init__(self, settings: ActorSettings, catalogue: Catalogue) -> None:
        pairs, paths = settings.pairs, settings.paths
        torch.set_num_threads(max(1, int(pairs.cpus_per_actor)))
        self.settings = settings
        self.dtype: torch.dtype = getattr(torch, settings.precision)
        self.free = pairs.asks_policy and pairs.engine == "vllm"
        if pairs.score or (pairs.asks_policy and not self.free):
            recommender = load_recommender(paths.policy, self.dtype)
            self.builder = recommender.builder
            self.policy = recommender.model.to(settings.device)
        elif self.free:
            self.builder = load_builder(paths.policy)
        if pairs.score or pairs.asks_oracle:
            self.oracle = load_scorer(paths.oracle, catalogue, settings.device)

    def given_to(self, inputs: StrategyInputs) -> StrategyInputs:
        """What strategies are made of, with these models."""
        return replace(
            inputs, decoder=self.decoder, listed=self.listed, scores=self.scores, whole=self.catalogue_scores
        )

    def decoder(self, beams: int) -> Answers:
        """What gives the policy's answers: a search with that many beams, or vLLM, loaded once."""
        return self._vllm if self.free else Decoder(self.policy, self.builder, beams)

    @property
    def listed(self) -> CandidateScores | None:
        """The policy's log-probabilities of the candidates that its prompts list; None where they list none."""
        if not (self.settings.pairs.asks_policy and self.builder.lists_candidates):
            return None
        model = LogpsModel(self.policy, float32_logits=True)
        return lambda prompts, candidates: candidate_logps(model, self.builder, prompts, candidates)

    @cached_property
    def _vllm(self) -> VllmDecoder:
        return VllmDecoder(self.settings.paths.policy, self.builder, self.settings.seed)

    def take_counts(self) -> Counter[str]:
        """What was generated freely since the last call; see `VllmDecoder.counts`."""
        counts: Counter[str] = Counter()
        if self.free:
            counts, self._vllm.counts = self._vllm.counts, counts
        return counts

    def scores(self, examples: Examples, items: np.ndarray) -> np.ndarray:
        """Calibrated oracle scores float32 [N, C] of items int64 [N, C]."""
        return calibrate(self.oracle.score(examples.users, examples.histories, items), self.oracle.tau)

    def catalogue_scores(self, examples: Examples) -> np.ndarray:
        """Calibrated oracle scores float32 [N, n_items] of every item."""
        return calibrate(self.oracle.score_all(examples.users, examples.histories), self.oracle.tau)

    def scorer(self) -> GroupScorer:
        """What scores groups."""
        settings, paths = self.settings, self.settings.paths
        reference = self.policy
        if paths.reference != paths.policy:
            reference = load_recommender(paths.reference, self.dtype).model.to(settings.device)
        return GroupScorer(self.builder, self.scores, LogpsModel(reference), settings.cache)
