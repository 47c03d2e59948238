"""Validation on held-out examples during training, and which of them was the best.

Loss, accuracy and margin come from micro-batches of held-out examples or groups. HR@10 and NDCG@10 come from what the
evaluation does: constrained beams over the whole catalogue, nothing that was seen competes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch
import torch.distributed as dist

from rosepo.data.item_columns import item_lists, items_of
from rosepo.data.prompts import PromptBuilder
from rosepo.data.random import example_keys
from rosepo.data.seen import read_split
from rosepo.lm.rows.batch import Batch
from rosepo.lm.rows.collate import collate_numpy
from rosepo.lm.rows.rows import group_row
from rosepo.training.ema import WeightMean, mean_in_place
from rosepo.training.feed.plan import Arrays
from rosepo.training.metric_log import Averages, all_sum, means
from rosepo.training.task import HeldOut
from rosepo.utils.errors import UserError

if TYPE_CHECKING:
    from rosepo.config import TrainConfig
    from rosepo.training.engine import Engine
    from rosepo.training.task import Task

VALIDATIONS = 4
"""Validations in a run where `validate_every` is unset, the last one after the last step."""
BEAMS = 10
"""Of the search for HR@10 during training: no more than it has to find, and the same whatever `evaluate.beams` is."""
_PER_USER = 8
"""Examples a user that are looked at to find one example of enough users."""


def held_out(examples: Path, builder: PromptBuilder, users: int, key: str) -> HeldOut | None:
    """One validation example of each of at most `users` users, those with the smallest hash; None for no users.

    Args:
        key: of the configuration, for the message.

    Raises:
        UserError: there is no validation example.
    """
    if not users:
        return None
    table = pa.concat_tables(read_split(examples, "validation", _PER_USER * users))
    if not len(table):
        raise UserError(f"{examples} holds no validation example for {key}={users}: leave it out")
    order = np.argsort(example_keys(table["example_id"].to_pylist()), kind="stable")
    first = np.unique(table["user_id"].to_numpy()[order].astype(str), return_index=True)[1]
    table = table.take(pa.array(np.sort(order[np.sort(first)[:users]])))
    prompts = [builder.prompt(history)[0] for history in item_lists(table, "history")]
    return HeldOut(builder, prompts, item_lists(table, "seen"), items_of(table, "target"))


class Validator:
    """One rank's share of the validations; all ranks call it together."""

    def __init__(self, task: Task, engine: Engine, mean: WeightMean | None) -> None:
        self.task, self.engine, self.mean = task, engine, mean
        self.dummy = dummy_batch()
        self._decoder: Any = None

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """The task's figures on what it holds out, `validation_<name>`, and `hr@10` and `ndcg@10`; dropout off, and of
        the running mean of the weights where there is one."""
        self.engine.module.eval()
        with mean_in_place(self.mean):
            figures = self._losses() | self._rankings()
        self.engine.module.train()
        return figures

    def _losses(self) -> dict[str, float]:
        batches, world = self.task.validation, self.engine.world
        sums = Averages(("loss", *self.task.metric_names))
        for start in range(0, len(batches), world):
            mine = start + dist.get_rank()
            arrays = batches[mine] if mine < len(batches) else {}
            batch = Batch.from_numpy(arrays or self.dummy).to(self.engine.device)
            logps, counts = self.engine.forward(batch)
            if arrays:
                loss = self.task.loss(logps, counts, arrays)
                sums.add({"loss": (loss.total, loss.units), **loss.sums})
        found = means(sums.collect())
        return {f"validation_{name}": found[name] for name in self.task.validated if name in found}

    def _rankings(self) -> dict[str, float]:
        held = self.task.held_out
        if held is None:
            return {}
        from rosepo.lm.titles.beam_search import Decoder
        from rosepo.metrics.ranking import hit_ratio, ndcg, target_ranks

        if self._decoder is None:
            self._decoder = Decoder(self.engine.module.model, held.builder, BEAMS)  # type: ignore[arg-type]
        # With partitioned weights a forward pass takes all ranks, so all of them search for the same examples.
        alone = slice(None) if self.engine.train.zero_stage == 3 else slice(dist.get_rank(), None, self.engine.world)
        items, _ = self._decoder.top_k(held.prompts[alone], held.seen[alone], 10)
        ranks = target_ranks(items, held.targets[alone])
        sums = torch.tensor([hit_ratio(ranks, 10).sum(), ndcg(ranks, 10).sum(), len(ranks)], dtype=torch.float64)
        hits, gains, count = all_sum(sums).tolist()
        return {"hr@10": hits / count, "ndcg@10": gains / count}


def validation_steps(train: TrainConfig, steps: int) -> frozenset[int]:
    """The steps after which to validate, the last one among them."""
    if train.validate_every is None:
        return frozenset(math.ceil(steps * number / VALIDATIONS) for number in range(1, VALIDATIONS + 1))
    return frozenset({*range(train.validate_every, steps + 1, train.validate_every), steps})


@dataclass
class Best:
    """The best validation so far.

    Attributes:
        metric: what it goes by; None follows nothing.
        patience: validations after which training stops, where none of them gained enough; None never.
        min_gain: the share by which a validation has to be better than the last that gained enough.
        step: of the best validation; None before the first.
        figures: of that validation.
        mark: the metric, larger is better, of the last validation that gained enough; None before the
            first.
        waited: validations since.
    """

    metric: str | None
    patience: int | None
    min_gain: float = 0.0
    step: int | None = None
    figures: dict[str, float] | None = None
    mark: float | None = None
    waited: int = 0

    def update(self, step: int, figures: dict[str, float]) -> bool:
        """Take a validation in; whether it is the best one. Equal figures are no better, nor is what is no number."""
        if self.metric is None or self.metric not in figures:
            return False
        sign = -1.0 if self.metric == "validation_loss" else 1.0
        new = sign * figures[self.metric]
        # Of no number every comparison is false.
        better = new > (sign * self.figures[self.metric] if self.figures is not None else -math.inf)
        if better:
            self.step, self.figures = step, dict(figures)
        if better if self.mark is None else new - self.mark > self.min_gain * abs(self.mark):
            self.mark, self.waited = new, 0
        else:
            self.waited += 1
        return better

    @property
    def exhausted(self) -> bool:
        """Whether it is time to stop."""
        return self.patience is not None and self.waited >= self.patience

    def facts(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"best_step": self.step, "best_figures": self.figures, "mark": self.mark, "waited": self.waited}

    def restore(self, facts: dict[str, Any]) -> None:
        """Go on from what `facts` gave."""
        self.step, self.figures = facts["best_step"], facts["best_figures"]
        self.mark, self.waited = facts["mark"], facts["waited"]


def check_best(train: TrainConfig, name: str, held_out: bool, remedy: str) -> None:
    """Refuse to choose the best model by a loss that nothing is `held_out` for, and to validate where nothing is.

    Raises:
        UserError: with the remedy.
    """
    if train.best_metric == "validation_loss" and not held_out:
        raise UserError(f"{name}.best_metric=validation_loss has nothing to be measured on: {remedy}")
    if train.validate_every is not None and not held_out and not train.validation_users:
        raise UserError(
            f"{name}.validate_every={train.validate_every} has nothing to look at: {remedy}, or set "
            f"{name}.validation_users"
        )


def dummy_batch() -> Arrays:
    """One token, for a rank that has no row: its collectives must keep step with the other ranks'."""
    token = np.zeros(1, dtype=np.int32)
    return collate_numpy([group_row(token, [token])])
