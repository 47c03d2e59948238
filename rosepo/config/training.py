"""Settings of what is trained: the policy, the oracle, the alignment."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from rosepo.config.base import Count, Gpu, NonNegative, Positive, Rate, Section


class TrainConfig(Section):
    """What `sft` and `align` share: a Ray Train TorchTrainer running a DeepSpeed engine."""

    workers: Count = 1
    cpus_per_worker: Positive = 1.0
    gpu: Gpu = "auto"
    """One GPU a worker: where the cluster has them, always, or never."""
    zero_stage: Annotated[int, Field(ge=0, le=3)] = 1
    precision: Literal["float32", "bfloat16"] = "float32"
    activation_checkpointing: bool = False
    epochs: Positive = 1.0
    """Passes over the training rows; fractions allowed."""
    batch_size: Count = 32
    """Rows a step over all workers; the loss is a mean over them, however they are split."""
    micro_batch_size: Count = 16
    """Rows a worker puts through the model at once; gradients accumulate to `batch_size`."""
    pack_tokens: Count | None = None
    """Short rows share lines of up to this many tokens, without attention between them; unset, each is padded."""
    learning_rate: Positive = 1e-4
    warmup_fraction: Annotated[float, Field(ge=0.0, le=1.0)] = 0.05
    """Share of the steps with a linear warm-up, before the cosine."""
    min_learning_rate: NonNegative = 0.0
    """Where the cosine ends."""
    weight_decay: NonNegative = 0.01
    max_grad_norm: Positive = 1.0
    log_every: Count = 10
    """Steps between two lines of metrics."""


class SftConfig(TrainConfig):
    """Supervised fine-tuning on next titles; the loss falls on completions alone."""

    learning_rate: Positive = 2e-4


class OracleConfig(Section):
    """SASRec (arXiv 1808.09781) with cross-entropy over the full catalogue: the preference oracle."""

    workers: Count = 1
    cpus_per_worker: Positive = 1.0
    gpu: Gpu = "auto"
    folds: Count = 2
    """Users are dealt into this many folds, each scored by a model that did not train on it. 1: one model, in sample,
    which is sure of what it was trained on and drives every epsilon to 0. Training takes 1 + folds models."""
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
    """Epochs between two looks at validation."""
    patience: Count = 10
    """Looks without a better NDCG@10 on validation before stopping."""
    max_seconds: Positive | None = None
    """Also stop after this long; None trains to the end."""

    @model_validator(mode="after")
    def _heads(self) -> OracleConfig:
        if self.hidden_size % self.heads:
            raise ValueError(f"oracle.hidden_size={self.hidden_size} must be a multiple of oracle.heads={self.heads}")
        return self


class AlignConfig(TrainConfig):
    """The smoothed preference objective, from the SFT model, which is also the reference (see pairs.rounds)."""

    learning_rate: Positive = 3e-5
    beta: Positive = 1.0
    """Strength of the tie to the reference."""
    loss: Literal["pairwise", "softmax"] = "pairwise"
    epsilon_max: Annotated[float, Field(ge=0.0, lt=0.5, allow_inf_nan=False)] = 0.4
    """Upper clamp of every pair's smoothing; 0 is DPO. Used by `pairwise`."""
    target_min: Annotated[float, Field(ge=0.0, le=1.0)] = 0.5
    """Lower clamp of the chosen title's target. Used by `softmax`."""

    @model_validator(mode="after")
    def _used(self) -> AlignConfig:
        if self.loss == "pairwise" and "target_min" in self.model_fields_set:
            raise ValueError("align.target_min is used by align.loss=softmax alone")
        if self.loss == "softmax" and "epsilon_max" in self.model_fields_set:
            raise ValueError("align.epsilon_max is used by align.loss=pairwise alone")
        return self
