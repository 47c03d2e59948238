"""What the training loop knows of a task: its protocol, the loss of a micro-batch, and what is told of whole steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from rosepo.config import TrainConfig
from rosepo.data.prompts import PromptBuilder
from rosepo.training.feed.plan import Arrays, FeedPlan
from rosepo.training.metric_log import Sums


@dataclass(frozen=True)
class HeldOut:
    """N validation examples that the catalogue is searched for.

    Attributes:
        builder: of the prompts; its completions are the titles.
        prompts: token ids of each.
        seen: item indexes that do not compete, of each.
        targets: item indexes int64 [N].
    """

    builder: PromptBuilder
    prompts: list[np.ndarray]
    seen: list[np.ndarray]
    targets: np.ndarray


@dataclass(frozen=True)
class Loss:
    """What a task makes of one micro-batch."""

    total: Tensor
    """Scalar with gradient, summed over the units of the micro-batch."""
    units: float
    """How many things the loss is a mean of: titles in `sft`, groups in `align`."""
    sums: Sums
    """Further figures."""
    tracked: Tensor | None = None
    """float64 [tracker.SIZE], what `Task.tracker` wants to know."""


class Tracker(Protocol):
    """What a task learns from whole steps and uses in the next: the same on every rank, however a step is split."""

    SIZE: int

    def update(self, statistics: Tensor) -> None:
        """After a step: `Loss.tracked` added up over all micro-batches and ranks, float64 [SIZE] on the CPU."""
        ...

    def state(self) -> dict[str, Any]:
        """All that it has learned, JSON-able, for a checkpoint."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        ...


class Task(Protocol):
    """What one kind of training does differently; travels to the workers through Ray."""

    @property
    def name(self) -> str: ...

    @property
    def train(self) -> TrainConfig: ...

    @property
    def seed(self) -> int: ...

    @property
    def plan(self) -> FeedPlan: ...

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Every name that a `Loss` may carry in `sums`."""
        ...

    @property
    def origin(self) -> str:
        """Digest of all that the result depends on: only checkpoints of the same are gone on from."""
        ...

    @property
    def validation(self) -> list[Arrays]:
        """Micro-batches of the validation loss; may be empty."""
        ...

    @property
    def validated(self) -> tuple[str, ...]:
        """Which figures of the validation micro-batches are told: `loss`, or names that a `Loss` carries in `sums`."""
        ...

    @property
    def held_out(self) -> HeldOut | None:
        """Examples that the catalogue is searched for at every validation; None for none."""
        ...

    @property
    def moments(self) -> Path | None:
        """File of the optimizer's state to begin with; None for a fresh one."""
        ...

    @property
    def keeps_moments(self) -> bool:
        """Whether the optimizer's state is left beside the model."""
        ...

    @property
    def tracker(self) -> Tracker | None:
        """What is to be told of every step; None for nothing."""
        ...

    @property
    def stored(self) -> torch.dtype:
        """What the model's weights are stored in."""
        ...

    def build(self) -> nn.Module:
        """The module (`LogpsModel`), the same weights on every rank; called once before a training's first step."""
        ...

    def verify(self, logps: Callable[[Arrays], Tensor]) -> None:
        """Look at the module before the first step, dropout off; every rank calls `logps` on the same arrays."""
        ...

    def loss(self, logps: Tensor, counts: Tensor, arrays: Arrays) -> Loss:
        """Loss of one micro-batch: logps float32 [C], counts int64 [C]."""
        ...

    def save(self, weights: dict[str, Tensor], folder: Path, figures: dict[str, Any]) -> None:
        """Write the model's folder; called on rank 0, after `build`."""
        ...
