"""Settings of the preference oracle."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal

from rosepo.config.base import Count, Gpu, NonNegative, Positive, Rate, Section


class OracleConfig(Section):
    """The preference oracle: SASRec (arXiv 1808.09781) over the full catalogue, or one of your own."""

    kind: Literal["sasrec", "scorer"] = "sasrec"
    """`sasrec` is trained here and takes all settings but `scorer`; a `scorer` of your own takes none beside `tau`."""
    scorer: str | None = None
    """Kind `scorer`: import path of your scorer's maker, `module:callable` (rosepo/oracle/external_oracle.py has the
    signature)."""
    tau: Positive | None = None
    """Temperature of the scores: sigmoid((a - b) / tau) is the chance that a is preferred. None fits it on
    validation."""
    workers: Count = 1
    cpus_per_worker: Positive = 1.0
    gpu: Gpu = "auto"
    folds: Count = 1
    """1: one model, in sample, the best teacher that softmax and distill were measured with; but it is sure of what it
    was trained on, and drives epsilon to 0. 2 and more: users are dealt into this many folds, each scored by a model
    that did not train on it, as an epsilon that means something needs; training takes 1 + folds models."""
    models: Count = 1
    """How many SASRecs, from other random starts, stand for each of these: their scores are averaged, which makes a
    stronger oracle, and a better teacher, for that many times the training."""
    hidden_size: Count = 64
    layers: Count = 2
    heads: Count = 2
    dropout: Rate = 0.5
    learning_rate: Positive = 3e-3
    weight_decay: NonNegative = 0.01
    batch_size: Count = 64
    """Users a step over all workers."""
    max_epochs: Count = 200
    evaluate_every: Count = 1
    """Epochs between two validations."""
    patience: Count = 10
    """Looks without a better NDCG@10 on validation before stopping; those in the 100 steps of warm-up do not count."""
    min_gain: Rate = 0.0
    """Share by which NDCG@10 has to get better for `patience` to wait anew."""
    max_seconds: Positive | None = None
    """Also stop each model after this long; None trains to the end."""

    @property
    def trained_models(self) -> int:
        """SASRecs that are trained one after another: the ensemble of all users, and one for each fold."""
        return self.models * (1 if self.folds == 1 else 1 + self.folds)

    def faults(self) -> Iterator[str]:
        if self.kind == "scorer":
            yield from self._faults_of_scorer(self.scorer)
        elif self.scorer is not None:
            yield "oracle.scorer is used by oracle.kind=scorer alone, and oracle.kind is sasrec"
        if self.hidden_size % self.heads:
            yield f"oracle.hidden_size={self.hidden_size} must be a multiple of oracle.heads={self.heads}"

    def _faults_of_scorer(self, scorer: str | None) -> Iterator[str]:
        if scorer is None:
            yield "oracle.kind=scorer needs oracle.scorer: set it"
        elif unused := sorted(self.model_fields_set - {"kind", "scorer", "tau"}):
            yield (
                f"oracle.{' and oracle.'.join(unused)} {'is' if len(unused) == 1 else 'are'} used by "
                "oracle.kind=sasrec alone: leave out what oracle.kind=scorer does not use "
                "(--set 'oracle={kind: scorer, …}' replaces the whole section)"
            )
        elif not re.fullmatch(r"[\w.]+:\w+", scorer):
            yield f"oracle.scorer={scorer} is not an import path: write module:callable"
