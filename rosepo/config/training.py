"""Settings of how the policy is trained: fine-tuning and alignment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from rosepo.config.base import Count, Gpu, NonNegative, OpenSection, Option, Positive, Rate, Section
from rosepo.config.losses import (
    LOSSES,
    SMOOTHINGS,
    LossName,
    Smoothing,
    loss_options,
    loss_settings,
    losses_with,
)

Epsilon = Annotated[float, Field(ge=0.0, lt=0.5, allow_inf_nan=False)]

SAME_RESULT = frozenset(
    {
        "workers",
        "cpus_per_worker",
        "gpu",
        "attention",
        "offload",
        "micro_batch_size",
        "micro_batch_tokens",
        "activation_checkpointing",
        "log_every",
        "checkpoint_every",
        "keep_checkpoints",
        "retries",
    }
)
"""Keys of a training that say where, how fast and in how much memory it is computed. They change nothing but rounding
and, in `sft`, the masks of dropout: another value goes on from the same checkpoint, and a sweep does not search it."""


class TrainConfig(Section):
    """What `sft` and `align` share: a Ray Train TorchTrainer running a DeepSpeed engine."""

    workers: Count = 1
    cpus_per_worker: Positive = 1.0
    gpu: Gpu = "auto"
    """One GPU a worker: where the cluster has them, always, or never."""
    zero_stage: Annotated[int, Field(ge=0, le=3)] = 1
    precision: Literal["float32", "bfloat16"] = "float32"
    activation_checkpointing: bool = False
    attention: Literal["auto", "sdpa", "eager", "flex"] = "auto"
    """`auto`: FlexAttention on GPUs, SDPA with a mask on CPUs; `flex` insists on the first and so on a GPU."""
    offload: Literal["none", "optimizer", "parameters"] = "none"
    """Kept in the CPU's memory beside a GPU: the optimizer's states and masters (zero_stage 1 and above), or the
    parameters too (zero_stage 3)."""
    epochs: Positive = 1.0
    """Passes over the training rows; fractions allowed."""
    batch_size: Count = 32
    """Rows a step over all workers; the loss is a mean over them, however they are split."""
    micro_batch_size: Count = 16
    """Rows a worker puts through the model at once; gradients accumulate to `batch_size`."""
    micro_batch_tokens: Count | None = None
    """Tokens, padding included, that a worker puts through the model at once, whatever `batch_size` users bring; a row
    that alone has more goes alone. Unset: as many as `micro_batch_size` full rows have, of model.max_length or
    `row_tokens`."""
    pack_tokens: Count | None = None
    """Short rows share lines of up to this many tokens, without attention between them; unset, each is padded."""
    learning_rate: Positive = 1e-4
    warmup_fraction: Annotated[float, Field(ge=0.0, le=1.0)] = 0.05
    """Share of the steps with a linear warm-up, before the cosine."""
    min_learning_rate: NonNegative = 0.0
    """Where the cosine ends."""
    weight_decay: NonNegative = 0.01
    max_grad_norm: Positive = 1.0
    ema: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Decay a step (0.995, say) of an exponential mean of the weights, which is validated and kept in place of the
    weights themselves: 4 bytes a parameter that trains, divided as the optimizer's state is. None keeps none."""
    log_every: Count = 10
    """Steps between two lines of metrics."""
    validate_every: Count | None = None
    """Steps between two validations on held-out examples, the last one after the last; None validates four times."""
    validation_users: Annotated[int, Field(ge=0)] = 0
    """Users of the validation split, chosen by a hash, for one example of each of whom every validation searches the
    catalogue: HR@10 and NDCG@10. 0 leaves that out."""
    best_metric: Literal["validation_loss", "hr@10", "ndcg@10"] | None = None
    """Keep the model of the validation that was best by this; None keeps the last one."""
    patience: Count | None = None
    """Validations without a better `best_metric` before stopping early; None trains to the end."""
    min_gain: Rate = 0.0
    """Share by which `best_metric` has to get better for `patience` to wait anew: of many looks some are better by
    chance."""
    max_seconds: Positive | None = None
    """Also stop after this long (loading the model and the last validation come on top), with the best model so far;
    None trains to the end. Set `min_learning_rate` with it: the cosine does not know of it."""
    checkpoint_every: Annotated[int, Field(ge=0)] | None = None
    """Steps between two checkpoints, from which a lost worker or the same command run again goes on. None takes a
    twentieth of the run, at least 10; 0 takes none."""
    keep_checkpoints: Count = 2
    """Newest checkpoints kept while training runs, beside the best one; a finished training keeps none."""
    retries: Annotated[int, Field(ge=0)] = 2
    """Times that lost workers are started again; an error in the training itself is never tried again."""
    section: ClassVar[str] = "train"

    def faults(self) -> Iterator[str]:
        name, least = self.section, {"none": 0, "optimizer": 1, "parameters": 3}[self.offload]
        if self.zero_stage < least:
            yield (
                f"{name}.offload={self.offload} needs {name}.zero_stage={least}"
                f"{'' if least == 3 else ' or above'}, and it is {self.zero_stage}: raise it, or leave offload out"
            )
        if self.patience is not None and self.best_metric is None:
            yield f"{name}.patience={self.patience} waits for a better {name}.best_metric, which is unset: set it too"
        if self.patience is None and self.min_gain:
            yield f"{name}.min_gain={self.min_gain:g} is not used without {name}.patience: set it too, or leave it out"
        if self.best_metric in ("hr@10", "ndcg@10") and not self.validation_users:
            yield (
                f"{name}.best_metric={self.best_metric} is measured on {name}.validation_users, of which there are 0: "
                "set it to 100, say"
            )
        if self.checkpoint_every == 0 and "keep_checkpoints" in self.model_fields_set:
            yield f"{name}.keep_checkpoints is not used beside {name}.checkpoint_every=0: leave one of them out"


class SftConfig(TrainConfig):
    """Supervised fine-tuning on next titles; the loss falls on completions alone."""

    learning_rate: Positive = 2e-4
    keep_optimizer: bool = False
    """Leave the optimizer's state beside the model, twice its size in float32, for align.optimizer=sft."""
    section: ClassVar[str] = "sft"


class AlignConfig(TrainConfig, OpenSection):
    """The smoothed preference objective or one of its rivals, from the SFT model, which is also the reference (see
    pairs.rounds)."""

    learning_rate: Positive = 3e-5
    epochs: Positive = 2.0
    batch_size: Count = 8
    """Rows a step over all workers: users, with all their groups, or groups (see `rows`)."""
    micro_batch_size: Count = 4
    section: ClassVar[str] = "align"
    beta: Positive = 0.5
    """Strength of the tie to the reference; `simpo`, which has none, multiplies log-probabilities a token by it. Not
    used by `sft` and `distill`."""
    loss: LossName = "softmax"
    """`pairwise` and `softmax` are RosePO, the others its rivals (docs/method.md). All take any number of rejected
    titles. Two are controls: `sft` goes on with fine-tuning and looks at no rejected title; `distill` learns the
    oracle's whole distribution, from titles that the strategy `oracle` has drawn from it."""
    epsilon: Smoothing = "oracle"
    """A pair's smoothing under `pairwise`: the `oracle`'s doubt about it; one `constant` for all pairs (cDPO); the
    oracle's, `shuffled` over all pairs; `zero` (DPO); `spa`: fixed for the pairs of least margin, no oracle."""
    epsilon_max: Epsilon = 0.4
    """Upper clamp of the oracle's smoothing; 0 is DPO. Used by `oracle`, `shuffled`, and `constant` without a value,
    which `cdpo` and `robust` are too."""
    epsilon_value: Epsilon | None = None
    """The smoothing of `constant`, `cdpo` and `robust` (unset: the mean of the oracle's, clamped) and of `spa` (unset:
    0.1)."""
    spa_quantile: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    """Share of the pairs, those of least margin, that `spa` smooths."""
    target_min: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Lower clamp of the chosen title's target. Used by `softmax`."""
    target_mix: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Weight of the reference in the targets of `softmax`, softmax((1 - w) f + w log π_ref): 0 is the oracle alone, 0.5
    an equal mix of both models, 1 the reference."""
    optimizer: Literal["fresh", "sft"] = "fresh"
    """Adam's moments at the start: `fresh` ones, or those that `sft` ended with (sft.keep_optimizer), in rounds after
    the first those of the round before. The learning rate's schedule begins anew either way."""
    dropout: bool = False
    """Keep the dropout that fine-tuning had: model.scratch.dropout, model.lora.dropout, a pretrained model's own. false
    leaves all of it out, as TRL does: policy and reference then differ in nothing but their weights."""
    rows: Literal["auto", "group", "trajectory"] = "auto"
    """A row of the model is a `group`, or a user's `trajectory`: the longest prompt once, and every group whose prompt
    begins alike branching off from it. Then `batch_size` and `micro_batch_size` count users, with all their groups.
    `auto` is `trajectory`, and `group` where every prompt lists candidates of its own."""
    row_tokens: Count = 2048
    """Tokens of a trajectory's row at most: longer ones are cut, at least one group a row. Used by `trajectory`."""
    sft_weight: NonNegative = Field(default_factory=lambda data: LOSSES[data["loss"]].sft_weight if data else 0.0)
    """Weight of the negative log-likelihood of the chosen titles, added to any loss. Unset: 1 for `rpo` and `sft`, 0
    for the others."""

    @classmethod
    def options(cls) -> Mapping[str, Option]:
        return loss_options()

    def used_options(self) -> Mapping[str, Option]:
        return {option.key: option for option in LOSSES[self.loss].options.values()}

    @property
    def smoothing(self) -> Smoothing | None:
        """The kind of smoothing in force, whatever the loss calls it; None where it takes none."""
        loss = LOSSES[self.loss]
        return self.epsilon if loss.takes_epsilon else loss.smoothing

    @property
    def clamps_epsilon(self) -> bool:
        """Whether `epsilon_max` has a say."""
        kind = self.smoothing
        given = kind == "constant" and self.epsilon_value is not None
        return kind is not None and "epsilon_max" in SMOOTHINGS[kind].settings and not given

    def faults(self) -> Iterator[str]:
        yield from super().faults()
        if "row_tokens" in self.model_fields_set and self.rows == "group":
            yield "align.row_tokens is used by align.rows=trajectory alone: leave it out, or set that"
        loss = LOSSES[self.loss]
        if loss.without_sft and self.sft_weight == 0.0:
            yield f"align.loss={self.loss} with align.sft_weight=0 {loss.without_sft}"
        if "beta" in self.model_fields_set and not loss.preference:
            yield f"align.beta is not used by align.loss={self.loss}, which compares no titles: leave it out"
        for key in loss_settings():
            if key in self.model_fields_set and getattr(self, key) is not None:
                yield from self._unused(key)
        if loss.check is not None:
            loss.check({key: self.option(key) for key in self.used_options()})

    def _unused(self, key: str) -> Iterator[str]:
        """Why a key that was set has no say."""
        users = losses_with(key)
        if self.loss not in users:
            named = " or ".join(filter(None, [", ".join(users[:-1]), users[-1]]))
            yield f"align.{key} is used by align.loss={named} alone, not by {self.loss}: leave it out, or set that"
        kinds = [kind for kind, smoothing in SMOOTHINGS.items() if key in smoothing.settings]
        if LOSSES[self.loss].takes_epsilon and kinds and self.epsilon not in kinds:
            yield f"align.{key} is used by align.epsilon={' or '.join(kinds)}, not by {self.epsilon}"
        if key == "epsilon_max" and not self.clamps_epsilon:
            yield "align.epsilon_max is not used beside align.epsilon_value: leave one of them out"
