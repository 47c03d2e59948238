"""The models that an actor asks: the policy that answers, the reference, the oracle."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from rosepo.data.catalogue import Catalogue
from rosepo.lm.model.model_folder import load_recommender
from rosepo.lm.rows.logps import LogpsModel
from rosepo.lm.serving.served_rows import served_logps
from rosepo.lm.serving.server import serving_of
from rosepo.lm.titles.beam_search import Decoder
from rosepo.lm.titles.candidate_scores import candidate_logps
from rosepo.lm.titles.title_scores import reference_logps
from rosepo.oracle.epsilon import calibrate
from rosepo.oracle.load import load_scorer
from rosepo.sampling.scoring import GroupScorer, Reference
from rosepo.sampling.strategies.example_batch import Examples
from rosepo.sampling.strategies.protocol import Answers, CandidateScores, StrategyInputs

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
        # Beside the reference and the oracle on the same GPU, or on all GPUs of the actor alone.
        share = 0.9 if pairs.served_reference or not pairs.score else 0.5
        serving = serving_of(pairs, settings.precision, settings.device == "cuda", share) if pairs.asks_policy else None
        if serving is not None:
            served = load_recommender(paths.policy, serving=serving)
            self.builder, self.answering = served.builder, served.model
        local_reference = pairs.score and not pairs.served_reference
        if local_reference or (pairs.asks_policy and serving is None):
            recommender = load_recommender(paths.policy, self.dtype)
            self.builder = recommender.builder
            self.policy = recommender.model.to(settings.device)
            if serving is None:
                self.answering = self.policy
        if pairs.score or pairs.asks_oracle:
            self.oracle = load_scorer(paths.oracle, catalogue, settings.device)

    def given_to(self, inputs: StrategyInputs) -> StrategyInputs:
        """What strategies are made of, with these models."""
        return replace(
            inputs, decoder=self.decoder, listed=self.listed, scores=self.scores, whole=self.catalogue_scores
        )

    def decoder(self, beams: int) -> Answers:
        """What gives the policy's answers: a search with that many beams."""
        return Decoder(self.answering, self.builder, beams)

    @property
    def listed(self) -> CandidateScores | None:
        """The policy's log-probabilities of the candidates that its prompts list; None where they list none."""
        if not (self.settings.pairs.asks_policy and self.builder.lists_candidates):
            return None
        model = LogpsModel(self.policy, float32_logits=True)
        return lambda prompts, candidates: candidate_logps(model, self.builder, prompts, candidates)

    def scores(self, examples: Examples, items: np.ndarray) -> np.ndarray:
        """Calibrated oracle scores float32 [N, C] of items int64 [N, C]."""
        return calibrate(self.oracle.score(examples.users, examples.histories, items), self.oracle.tau)

    def catalogue_scores(self, examples: Examples) -> np.ndarray:
        """Calibrated oracle scores float32 [N, n_items] of every item."""
        return calibrate(self.oracle.score_all(examples.users, examples.histories), self.oracle.tau)

    def scorer(self) -> GroupScorer:
        """What scores groups."""
        return GroupScorer(self.builder, self.scores, self._reference(), self.settings.cache)

    def _reference(self) -> Reference:
        paths = self.settings.paths
        if self.settings.pairs.served_reference:
            return partial(served_logps, self.answering)
        reference = self.policy
        if paths.reference != paths.policy:
            reference = load_recommender(paths.reference, self.dtype).model.to(self.settings.device)
        return partial(reference_logps, LogpsModel(reference))
