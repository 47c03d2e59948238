"""What a model's folder says of how it was made: the few values of a configuration that a training's workers need."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rosepo.config import LOSSES, AlignConfig, Config, DataConfig, ModelConfig, dump_config
from rosepo.config.root import shape_of


@dataclass(frozen=True)
class ModelRecord:
    """Of a model that is trained; made where the configuration is, and sent to the workers that write the model.

    Attributes:
        stage: `sft` or `align`.
        model: what it is, and what its prompts look like.
        data: what it was trained on.
        max_history: newest items of a history that it reads.
        candidates: titles that a prompt lists, where its template lists any.
        trained_by: the training, in the words of the model card.
        command: what made it.
        config: the configuration as YAML; what it does not name is at its default.
        facts: rows of the card's metrics that are known before the training.
    """

    stage: str
    model: ModelConfig
    data: DataConfig
    max_history: int
    candidates: int
    trained_by: str
    command: str
    config: str
    facts: Mapping[str, Any]


def model_record(
    config: Config,
    stage: str,
    round: int = 1,
    figures: Mapping[str, Any] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> ModelRecord:
    """The record of the model that a stage trains with a configuration.

    Args:
        stage: `sft` or `align`.
        round: of `align`.
        figures: of the stage, where they hold an epsilon that it computed.
        facts: see `ModelRecord`.
    """
    option = "" if round == 1 else f" --round {round}"
    return ModelRecord(
        stage=stage,
        model=config.model,
        data=config.data,
        max_history=config.prepare.max_history,
        candidates=config.prepare.candidates,
        trained_by=_trained_by(stage, config, figures or {}),
        command=f"rosepo {stage}{option} --config config.yaml --out RUN",
        config=dump_config(config),
        facts=facts or {},
    )


def _trained_by(stage: str, config: Config, figures: Mapping[str, Any]) -> str:
    if stage == "align":
        loss = f"{_loss(config.align)} ({shape_of(config, figures)})"
        kind = "preference optimisation with " if LOSSES[config.align.loss].preference else ""
        return f"{kind}{loss} after supervised fine-tuning"
    return "supervised fine-tuning on next titles (completion tokens only)"


def _loss(align: AlignConfig) -> str:
    """The loss by the name that its smoothing has among the losses."""
    name = align.loss if align.smoothing is None else LOSSES[align.loss].named.get(align.smoothing, align.loss)
    return LOSSES[name].described
