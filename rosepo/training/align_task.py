"""Alignment as the training loop knows it: the model that starts, the check of its groups, the loss, the result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn

from rosepo.config import LOSSES, AlignConfig
from rosepo.config.losses import INPUTS, LossEntry
from rosepo.data.catalogue import Catalogue
from rosepo.lm.cards.record import ModelRecord
from rosepo.lm.model.dropout import disable_dropout, training_dropout
from rosepo.lm.model.model_folder import CATALOGUE, load_builder
from rosepo.lm.model.policy import load_policy, load_tokenizer, save_policy
from rosepo.lm.rows.logps import LogpsModel, sharing_obstacle
from rosepo.objectives.likelihood import chosen_nll, drawn_weights
from rosepo.objectives.rewards import Metrics, reward_margins
from rosepo.objectives.smoothing import RunningQuantile, clamp_epsilon, oracle_targets
from rosepo.training.feed.encoders import GroupEncoder, strategy_labels
from rosepo.training.feed.plan import Arrays, FeedPlan
from rosepo.training.feed.reference_check import check_reference
from rosepo.training.feed.trie_targets import TrieTargets
from rosepo.training.metric_log import Sums
from rosepo.training.sft import card_figures, compute_dtype, storage_dtype
from rosepo.training.task import HeldOut, Loss
from rosepo.utils.errors import UserError
from rosepo.utils.imports import find_callable

_BY_STRATEGY = ("margin", "accuracy", "epsilon")
_OVERALL = (
    "margin", "accuracy", "reward_chosen", "reward_rejected", "logp_chosen", "logp_rejected", "epsilon", "target_kl",
)  # fmt: skip


@dataclass
class AlignTask:
    """Alignment, as the training loop knows it.

    Attributes:
        start: folder of the model that training starts from.
        reference: folder of the model whose log-probabilities the groups hold.
        probed: the groups that `verify` looks at; where they are not made yet, None,
        probed_rows: and their rows of the table, int64 [n], looked up when `verify` is called.
    """

    train: AlignConfig
    seed: int
    record: ModelRecord
    start: Path
    reference: Path
    plan: FeedPlan
    probed: pa.Table | None
    round: int = 1
    validation_file: Path | None = None
    """Groups that are held out; they too may not be made yet."""
    learns_whole: bool = False
    """The oracle's whole distribution, at the branchings of the titles' trie."""
    epsilon_value: float | None = None
    """The one epsilon of smoothing by `constant`, `zero` and `spa`."""
    tracker: RunningQuantile | None = None
    """Of the margins, for `spa`."""
    held_out: HeldOut | None = None
    origin: str = ""
    moments: Path | None = None
    name: ClassVar[str] = "align"
    validated: ClassVar[tuple[str, ...]] = ("loss", "accuracy", "margin", "target_kl")
    probed_rows: np.ndarray | None = None
    _built: Any = None

    def __getstate__(self) -> dict[str, Any]:
        # Columns of the plan are for the feeding actors, which get the plan itself: not once more for every worker.
        return self.__dict__ | {"plan": replace(self.plan, instead={}, offsets=None)}

    @property
    def entry(self) -> LossEntry:
        return LOSSES[self.train.loss]

    @cached_property
    def objective(self) -> Callable[..., tuple[Tensor, Metrics]]:
        return find_callable(self.entry.function, f"align.loss={self.train.loss}")

    @property
    def metric_names(self) -> tuple[str, ...]:
        by_strategy = (f"{name}/{strategy}" for name in _BY_STRATEGY for strategy in strategy_labels())
        return (*_OVERALL, *by_strategy, "spa_threshold", *self.entry.metrics)

    @property
    def keeps_moments(self) -> bool:
        # The next round goes on with them; how many rounds there will be is not known for good.
        return self.train.optimizer == "sft"

    @property
    def figures(self) -> dict[str, Any]:
        """What is known of the training without it."""
        known: dict[str, Any] = {"groups": self.plan.n_table_rows}
        if self.plan.offsets is not None:
            known["users"] = self.plan.n_rows
        if self.train.smoothing is not None:
            known["epsilon_kind"] = self.train.smoothing
        return known if self.epsilon_value is None else known | {"epsilon_value": self.epsilon_value}

    def build(self) -> nn.Module:
        if self.tracker is not None:
            self.tracker.restart()
        train, model_config = self.train, self.record.model
        self._built = model = load_policy(self.start, trainable=True, compute_dtype=compute_dtype(train))
        if not train.dropout:
            disable_dropout(model)
        elif model_config.path is None:
            training_dropout(model, model_config.scratch_config.dropout)
        obstacle = sharing_obstacle(model, model_config.max_length) if self.learns_whole else None
        if obstacle is not None:
            raise UserError(f"pairs.oracle_whole=true takes rows that share their prompts: {obstacle}; leave it out")
        checkpointing = train.activation_checkpointing
        return LogpsModel(model, attention=train.attention, activation_checkpointing=checkpointing).train()

    def verify(self, logps: Callable[[Arrays], Tensor]) -> None:
        """Refuse groups whose reference log-probabilities are not those of the reference, see `check_reference`; a loss
        without one asks none."""
        if self.entry.reference_free:
            return
        probed = self._look_up() if self.probed is None else self.probed
        remedy = f"run `rosepo pairs{'' if self.round == 1 else f' --round {self.round}'}` again"
        if self.reference == self.start:
            check_reference(probed, self.reference, remedy, logps, self.train.precision)
        else:
            check_reference(probed, self.reference, remedy, precision=self.train.precision)

    @cached_property
    def validation(self) -> list[Arrays]:
        """Micro-batches of the groups that are held out; waits for those that are not made yet."""
        if self.validation_file is None:
            return []
        growing = self.plan.growing
        name = self.validation_file.name
        table = pq.read_table(self.validation_file) if growing is None else growing.read(name)
        table = table.select([column for column in table.column_names if column in self.plan.columns])
        parts = -(-len(table) // self.train.micro_batch_size)
        branchings = trie_targets_of(self.reference) if self.learns_whole else None
        return GroupEncoder(self.train.pack_tokens, branchings, self.train.micro_batch_tokens)(table, parts)

    def _look_up(self) -> pa.Table:
        assert self.probed_rows is not None
        return self.plan.open().take(self.probed_rows)

    def loss(self, logps: Tensor, counts: Tensor, arrays: Arrays) -> Loss:
        train, groups = self.train, int(arrays["units"])
        strategy = _tensor(arrays, "strategy", logps.device) if self.entry.reads_rejected else None
        size = 1 if strategy is None else 1 + strategy.shape[1]
        policy = logps[: groups * size].view(groups, size)
        inputs = self._inputs(policy, counts, arrays)
        strength = {"beta": train.beta} if self.entry.preference else {}
        options = {argument: train.option(option.key) for argument, option in self.entry.options.items()}
        learned = _at_branchings(policy, logps[groups * size :]) if "entropy" in arrays else policy
        losses, metrics = self.objective(learned, **inputs, **strength, **options)
        if "entropy" in arrays:
            least = (inputs["weights"] * _tensor(arrays, "entropy", losses.device)).sum(dim=1)
            metrics |= {"target_kl": losses.detach() - least}
        if train.sft_weight > 0:
            losses = losses + train.sft_weight * chosen_nll(policy)
        if "epsilon" in inputs:
            metrics |= {"epsilon": inputs["epsilon"]}
        sums = _sums(policy.detach(), strategy, metrics)
        tracked = None
        if self.tracker is not None:
            tracked = self.tracker.statistics(metrics["margin"])
            if self.tracker.threshold is not None:
                sums["spa_threshold"] = (self.tracker.threshold, 1)
        return Loss(losses.sum(), float(groups), sums, tracked)

    def _inputs(self, policy: Tensor, counts: Tensor, arrays: Arrays) -> dict[str, Tensor]:
        """What the objective reads beside policy [G, 1 + K]."""
        inputs: dict[str, Tensor] = {}
        for name in INPUTS:  # the reference first: it is what others are made with
            if name not in self.entry.inputs:
                continue
            if name == "epsilon":
                inputs[name] = self._epsilon(_tensor(arrays, "epsilon", policy.device), policy, inputs["ref_logps"])
            elif name == "targets":
                scores = _tensor(arrays, "oracle_scores", policy.device)
                mix = self.train.target_mix
                inputs[name] = oracle_targets(scores, self.train.target_min, inputs["ref_logps"], mix)
            elif name == "weights":
                scores, rest = (_tensor(arrays, column, policy.device) for column in ("oracle_scores", "oracle_rest"))
                inputs[name] = drawn_weights(scores, rest)
            elif name == "counts":
                inputs[name] = counts[: policy.numel()].view_as(policy)
            else:
                inputs[name] = _tensor(arrays, name, policy.device)
        return inputs

    def _epsilon(self, stored: Tensor, policy: Tensor, reference: Tensor) -> Tensor:
        """Epsilon [G, K] of pairs whose epsilon in the table is `stored`, from both models' log-probabilities."""
        if self.epsilon_value is None:
            return clamp_epsilon(stored, self.train.epsilon_max)
        fixed = torch.full_like(stored, self.epsilon_value)
        if self.tracker is None:
            return fixed
        return fixed * self.tracker.below(reward_margins(policy, reference, self.train.beta))

    def save(self, weights: dict[str, Tensor], folder: Path, figures: dict[str, Any]) -> None:
        tokenizer, catalogue = load_tokenizer(self.start), Catalogue.load(self.start / CATALOGUE)
        weights, figures = storage_dtype(weights, self.record.model, self.train), card_figures(figures)
        save_policy(folder, self._built, tokenizer, catalogue, self.record, state_dict=weights, figures=figures)


def trie_targets_of(model: Path) -> TrieTargets:
    """The titles of a model's catalogue, at whose branchings the oracle's whole distribution is learned."""
    return TrieTargets(load_builder(model))


def _at_branchings(policy: Tensor, others: Tensor) -> Tensor:
    """What stands for the log-probabilities of the groups' titles `policy` where the oracle's whole distribution is
    learned, [G, 1 + K]: expectations at the branchings below the root and at the root, whose log-probabilities are
    `others`, [G (1 + K) + G] (see `TrieTargets.add`)."""
    below, root = others.split([policy.numel(), len(policy)])
    return below.view_as(policy) + root[:, None]


def _tensor(arrays: Arrays, name: str, device: torch.device) -> Tensor:
    # A copy: arrays that come through Ray's object store cannot be written to, which torch warns of.
    return torch.from_numpy(np.array(arrays[name])).to(device, non_blocking=True)


def _sums(policy: Tensor, strategy: Tensor | None, metrics: Metrics) -> Sums:
    """Sums and counts over a micro-batch, of its pairs also by strategy; None where it has none."""
    values = metrics | {"logp_chosen": policy[:, 0]}
    if strategy is None:
        return {name: (value.sum(), value.numel()) for name, value in values.items()}
    values |= {"logp_rejected": policy[:, 1:]}
    sums: Sums = {name: (value.sum(), value.numel()) for name, value in values.items()}
    for code, label in enumerate(strategy_labels()):
        mine = strategy == code
        for name in _BY_STRATEGY:
            if name in values:
                sums[f"{name}/{label}"] = ((values[name] * mine).sum(), mine.sum())
    return sums
