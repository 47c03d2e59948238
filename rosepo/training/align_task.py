"""Alignment as the training loop knows it: the model that starts, the check of its groups, the loss, the result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from rosepo.config import OWN_STRATEGY, STRATEGIES, AlignConfig, Config, TrainConfig
from rosepo.data.catalogue import Catalogue
from rosepo.errors import StageError
from rosepo.models.folder import CATALOGUE
from rosepo.models.policy import load_policy, load_tokenizer, save_policy
from rosepo.objectives.rosepo import Metrics, pairwise, reward_margins, softmax
from rosepo.objectives.smoothing import RunningQuantile, clamp_epsilon, oracle_targets
from rosepo.training.batch import Batch
from rosepo.training.encoders import GroupEncoder
from rosepo.training.feed import Arrays, FeedPlan
from rosepo.training.logps import LogpsModel
from rosepo.training.metrics import Sums
from rosepo.training.sft import card_figures, storage_dtype
from rosepo.training.task import Loss

PROBED_GROUPS = 8
"""Groups on which the policy's log-probabilities are compared with the table's before the first step."""
TOLERANCE = {"float32": (0.01, 1e-3), "bfloat16": (0.3, 0.03)}
"""Absolute and relative difference that arithmetic alone may make; another model or template is nats away."""
_LABELS = (*STRATEGIES, OWN_STRATEGY)
_BY_STRATEGY = ("margin", "accuracy", "epsilon")
_OVERALL = ("margin", "accuracy", "reward_chosen", "reward_rejected", "logp_chosen", "logp_rejected", "epsilon")


@dataclass
class AlignTask:
    """Alignment, as the training loop knows it.

    Attributes:
        start: folder of the model that training starts from.
        reference: folder of the model whose log-probabilities the groups hold.
        probed: the groups that `verify` looks at; where they are not made yet, None,
        probed_rows: and their rows of the table, int64 [n], looked up when `verify` is called.
    """

    config: Config
    start: Path
    reference: Path
    plan: FeedPlan
    probed: pa.Table | None
    round: int = 1
    validation: list[Arrays] = field(default_factory=list)
    epsilon_value: float | None = None
    """The one epsilon of `constant`, `zero` and `spa`."""
    tracker: RunningQuantile | None = None
    """Of the margins, for `spa`."""
    name: ClassVar[str] = "align"
    metric_names: ClassVar[tuple[str, ...]] = (
        *_OVERALL,
        *(f"{name}/{strategy}" for name in _BY_STRATEGY for strategy in _LABELS),
        "spa_threshold",
    )
    probed_rows: np.ndarray | None = None
    _built: Any = None

    def __getstate__(self) -> dict[str, Any]:
        # Columns of the plan are for the feeding actors, which get the plan itself: not once more for every worker.
        return self.__dict__ | {"plan": replace(self.plan, instead={})}

    @property
    def train(self) -> TrainConfig:
        return self.settings

    @cached_property
    def settings(self) -> AlignConfig:
        return self.config.align

    @property
    def seed(self) -> int:
        return self.config.seed

    @property
    def figures(self) -> dict[str, Any]:
        """What is known of the training without it."""
        known: dict[str, Any] = {"groups": self.plan.n_rows}
        if self.settings.loss == "pairwise":
            known["epsilon_kind"] = self.settings.epsilon
        return known if self.epsilon_value is None else known | {"epsilon_value": self.epsilon_value}

    def build(self) -> nn.Module:
        if self.tracker is not None:
            self.tracker.restart()
        self._built = model = load_policy(self.start, trainable=True)
        disable_dropout(model)
        return LogpsModel(model, activation_checkpointing=self.train.activation_checkpointing).train()

    def verify(self, logps: Callable[[Arrays], Tensor]) -> None:
        """Refuse groups whose reference log-probabilities are not those of the reference.

        Where that is the model that training starts from, it is asked as it stands in the engine; another one is loaded
        for this alone, on the CPU, where training needs no room.
        """
        absolute, relative = TOLERANCE[self.train.precision]
        if self.reference != self.start:
            logps, (absolute, relative) = _logps_of(self.reference), TOLERANCE["float32"]
        encoder, probed = GroupEncoder(), self._look_up() if self.probed is None else self.probed
        for place in range(len(probed)):
            (arrays,) = encoder(probed.slice(place, 1), 1)
            expected = arrays["ref_logps"][0]
            found = logps(arrays).float().numpy()
            off = np.abs(found - expected)
            if not (off <= absolute + relative * np.abs(expected)).all():
                worst, example = int(np.argmax(off)), probed["example_id"][place].as_py()
                raise StageError(
                    f"the groups were made with another model, tokenizer or template than {self.reference}: example "
                    f"{example} has a reference log-probability of {expected[worst]:.3f} in the table and "
                    f"{found[worst]:.3f} under the model; run `rosepo pairs{self._option}` again"
                )

    def _look_up(self) -> pa.Table:
        assert self.probed_rows is not None
        return self.plan.open().take(self.probed_rows)

    def loss(self, logps: Tensor, counts: Tensor, arrays: Arrays) -> Loss:
        reference, scores, stored, strategy = (
            torch.from_numpy(np.array(arrays[name])).to(logps.device)
            for name in ("ref_logps", "oracle_scores", "epsilon", "strategy")
        )
        policy = logps.view_as(reference)
        align = self.settings
        if align.loss == "softmax":
            losses, metrics = softmax(policy, reference, oracle_targets(scores, align.target_min), align.beta)
            return Loss(losses.sum(), float(len(losses)), _sums(policy.detach(), strategy, metrics))
        epsilon = self._epsilon(stored, reward_margins(policy, reference, align.beta))
        losses, metrics = pairwise(policy, reference, epsilon, align.beta)
        sums = _sums(policy.detach(), strategy, metrics | {"epsilon": epsilon})
        if self.tracker is None:
            return Loss(losses.sum(), float(len(losses)), sums)
        if self.tracker.threshold is not None:
            sums["spa_threshold"] = (self.tracker.threshold, 1)
        return Loss(losses.sum(), float(len(losses)), sums, self.tracker.statistics(metrics["margin"]))

    def _epsilon(self, stored: Tensor, margins: Tensor) -> Tensor:
        """Epsilon [G, K] of pairs whose epsilon in the table is `stored` and whose reward margins are `margins`."""
        if self.epsilon_value is None:
            return clamp_epsilon(stored, self.settings.epsilon_max)
        fixed = torch.full_like(stored, self.epsilon_value)
        return fixed if self.tracker is None else fixed * self.tracker.below(margins)

    def save(self, weights: dict[str, Tensor], folder: Path, figures: dict[str, Any]) -> None:
        save_policy(
            folder,
            self._built,
            load_tokenizer(self.start),
            Catalogue.load(self.start / CATALOGUE),
            self.config,
            stage="align",
            state_dict=storage_dtype(weights, self.config, self.train),
            figures=card_figures(figures) | self._round_facts(),
            command=f"rosepo align{self._option} --config config.yaml --out RUN",
        )

    @property
    def _option(self) -> str:
        return "" if self.round == 1 else f" --round {self.round}"

    def _round_facts(self) -> dict[str, Any]:
        """What the model card says of a round after the first."""
        moved = self.reference == self.start
        reference = "the model of the round before" if moved else "the SFT model"
        return {"round": self.round, "reference": reference} if self.round > 1 else {}


def _logps_of(folder: Path) -> Callable[[Arrays], Tensor]:
    """Log-probabilities of a micro-batch's completions under the model of a folder, on the CPU."""
    model = LogpsModel(load_policy(folder))
    return lambda arrays: model(Batch.from_numpy(arrays))[0]


def disable_dropout(model: nn.Module) -> None:
    """Set every dropout of a model to 0, in place, attention's included; the model may stay in training mode."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        # Some families (OPT, Phi) keep rates as plain numbers and call functional dropout.
        for name, value in vars(module).items():
            if isinstance(value, float) and ("dropout" in name or name == "layerdrop"):
                setattr(module, name, 0.0)


def _sums(policy: Tensor, strategy: Tensor, metrics: Metrics) -> Sums:
    """Sums and counts over the pairs of a micro-batch, overall and by strategy."""
    values = metrics | {"logp_chosen": policy[:, 0], "logp_rejected": policy[:, 1:]}
    sums: Sums = {name: (value.sum(), value.numel()) for name, value in values.items()}
    for code, label in enumerate(_LABELS):
        mine = strategy == code
        for name in _BY_STRATEGY:
            if name in values:
                sums[f"{name}/{label}"] = ((values[name] * mine).sum(), mine.sum())
    return sums
