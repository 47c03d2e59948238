"""The losses of `align.loss`, in one table.

A new one is a pure function of a group's log-probabilities and an entry here. Configuration, `--help`, the feed,
training, model card and report ask the table; no other file knows the losses by name.

    def hinge(policy_logps, ref_logps, beta, margin):  # in rosepo/objectives/; `rosepo.pairwise` says what is what
        rewards = beta * log_ratios(policy_logps, ref_logps)
        return F.relu(margin - pair_margins(rewards)).mean(dim=1), reward_metrics(rewards)

    MARGIN = Option("hinge_margin", Positive, 1.0, "Margin that `hinge` wants between a chosen and a rejected title.")
    LOSSES["hinge"] = LossEntry(
        "hinge loss", "rosepo.objectives.hinge:hinge", "margin {hinge_margin:g}", options={"margin": MARGIN}
    )
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from rosepo.config.base import Option, Positive, nearest

Settings = Mapping[str, Any]
"""Values by key: those of `align`, and `oracle_whole` of `pairs`."""
Shape = str | Callable[[Settings], str]
"""What a loss aims at, in a few words: a text with `{key}` for values of the settings, or a function of them."""
Smoothing = Literal["oracle", "constant", "shuffled", "zero", "spa"]
INPUTS: dict[str, tuple[str, ...]] = {
    "ref_logps": (),
    "epsilon": (),
    "targets": ("target_min", "target_mix"),
    "weights": (),
    "counts": (),
}
"""What a loss may read beside the policy's log-probabilities, and the keys of `align` that say how it is made (those of
epsilon: `SMOOTHINGS`): `ref_logps` [G, 1 + K], `epsilon` [G, K], `targets` [G, 1 + K] of the oracle and the reference,
`weights` [G, 1 + K] of titles drawn from the oracle, `counts` [G, 1 + K], tokens of every title."""


@dataclass(frozen=True)
class SmoothingKind:
    """A kind of epsilon: the keys of `align` that it takes, and its shape."""

    settings: tuple[str, ...]
    shape: Shape


def _fixed(settings: Settings) -> str:
    value = settings["epsilon_value"]
    return "ε" if value is None else f"ε = {value:.3g}"


SMOOTHINGS: dict[Smoothing, SmoothingKind] = {
    "oracle": SmoothingKind(("epsilon_max",), "ε ≤ {epsilon_max:g}"),
    "constant": SmoothingKind(("epsilon_max", "epsilon_value"), lambda s: f"one {_fixed(s)} for all pairs"),
    "shuffled": SmoothingKind(("epsilon_max",), "ε ≤ {epsilon_max:g}, shuffled over all pairs"),
    "zero": SmoothingKind((), "ε = 0"),
    "spa": SmoothingKind(
        ("epsilon_value", "spa_quantile"),
        lambda s: f"{_fixed(s)} for the {100 * s['spa_quantile']:g} % of pairs with the least margin",
    ),
}


@dataclass(frozen=True)
class LossEntry:
    """What there is to know of a loss.

    Attributes:
        described: its name and source, for people.
        function: import path, resolved where it is called: with `policy_logps` [G, 1 + K], the chosen title first, and
            by name `inputs`, `beta` where it is a preference, and `options`. Returns the loss of every group [G], and
            metrics.
        shape: what it aims at. Not asked where it smooths: `SMOOTHINGS` knows.
        inputs: what it reads, of `INPUTS`.
        options: its own hyper-parameters: the function's argument, and the setting that holds it.
        check: of the options' values by key; raises ValueError where they do not go together.
        smoothing: the kind of epsilon that it stands for; None leaves it to `align.epsilon`, where it reads one.
        named: what it is called under a kind of `align.epsilon` that makes another loss of it.
        preference: it compares titles, and `align.beta` says how strongly; the others are likelihoods.
        reads_rejected: it looks at the rejected titles; without, K is 0.
        whole: it is linear in the log-probabilities, so that expectations at the branchings of the catalogue's titles
            may take their place (`pairs.oracle_whole`).
        metrics: names of its metrics, beside those of `reward_metrics` and `target_kl`.
        sft_weight: `align.sft_weight` where that is not set.
        without_sft: what it is with a weight of 0, and the remedy; empty where that is a loss of its own.
    """

    described: str
    function: str
    shape: Shape = ""
    inputs: tuple[str, ...] = ("ref_logps",)
    options: Mapping[str, Option] = field(default_factory=dict)
    check: Callable[[Settings], None] | None = None
    smoothing: Smoothing | None = None
    named: Mapping[Smoothing, str] = field(default_factory=dict)
    preference: bool = True
    reads_rejected: bool = True
    whole: bool = False
    metrics: tuple[str, ...] = ()
    sft_weight: float = 0.0
    without_sft: str = ""

    def __post_init__(self) -> None:
        unknown = [name for name in self.inputs if name not in INPUTS]
        if unknown:
            raise ValueError(f"{self.function}: no loss is given {unknown[0]}{nearest(unknown[0], [*INPUTS])}")
        if self.reference_free and not {"epsilon", "targets"}.isdisjoint(self.inputs):
            raise ValueError(f"{self.function}: epsilon and targets are made with ref_logps, which it does not read")
        if self.whole and "weights" not in self.inputs:
            raise ValueError(f"{self.function}: the whole distribution comes with weights, which it does not read")

    @property
    def reference_free(self) -> bool:
        """Whether it knows no reference model."""
        return "ref_logps" not in self.inputs

    @property
    def takes_epsilon(self) -> bool:
        """Whether `align.epsilon` says which kind of epsilon it reads."""
        return "epsilon" in self.inputs and self.smoothing is None

    @property
    def settings(self) -> tuple[str, ...]:
        """Keys of `align` that it takes and not every other loss does."""
        kinds = (self.smoothing,) if self.smoothing is not None else tuple(SMOOTHINGS) if self.takes_epsilon else ()
        keys = ["epsilon"] if self.takes_epsilon else []
        keys += [key for kind in kinds for key in SMOOTHINGS[kind].settings]
        keys += [key for name in self.inputs for key in INPUTS[name]]
        return tuple(dict.fromkeys([*keys, *(option.key for option in self.options.values())]))


_ROSEPO = "smoothed labels (RosePO, arXiv 2410.12519)"
_SMOOTHED = ("ref_logps", "epsilon")
_PAIRWISE, _DPO = "rosepo.objectives.rosepo:pairwise", "rosepo.objectives.rivals:dpo"
_Finite = Annotated[float, Field(allow_inf_nan=False)]

AVERAGE = Option("ipo_average", bool, False, "`ipo` compares log-ratios a token, not summed over a title's tokens.")
GAMMA = Option(
    "simpo_gamma", _Finite, 0.5, "Margin that `simpo` wants between the rewards of a chosen and a rejected title."
)
TAU_MIN = Option("ada_tau_min", Positive, 0.1, "`ada_dpo`: least scale of a pair, that of an ambiguous one.")
TAU_MAX = Option("ada_tau_max", Positive, 5.0, "`ada_dpo`: largest scale of a pair, that of a clear one.")
RHO = Option(
    "ada_rho",
    _Finite,
    round(0.1 - math.log(2), 4),
    "`ada_dpo`: cost of a unit of scale, between -log 2 and 0; the authors' code adds log 2 to it (0.1 here).",
)


def _softmax_shape(settings: Settings) -> str:
    low, mix = settings["target_min"], settings["target_mix"]
    clamp = f", the chosen one's ≥ {low:g}" if low > 0 else ""
    return f"targets from the oracle{clamp}" + (f", {100 * mix:g} % of them from the reference" if mix > 0 else "")


def _check_tau(settings: Settings) -> None:
    low, high, rho = settings["ada_tau_min"], settings["ada_tau_max"], settings["ada_rho"]
    if low > high:
        raise ValueError(f"align.ada_tau_min={low:g} is above align.ada_tau_max={high:g}: lower it")
    if low < high and not -math.log(2) < rho < 0:
        end = "ada_tau_min" if rho >= 0 else "ada_tau_max"
        raise ValueError(
            f"align.ada_rho={rho:g} puts every pair at align.{end}: choose one between -0.6931 (-log 2) and 0, "
            "such as -0.5931, which is 0.1 in the authors' code"
        )


LOSSES: dict[str, LossEntry] = {
    "pairwise": LossEntry(
        _ROSEPO, _PAIRWISE, inputs=_SMOOTHED, named={"constant": "cdpo", "zero": "dpo", "spa": "spa"}
    ),
    "softmax": LossEntry(
        f"{_ROSEPO} over whole groups",
        "rosepo.objectives.rosepo:softmax",
        _softmax_shape,
        inputs=("ref_logps", "targets"),
    ),
    "dpo": LossEntry("DPO (arXiv 2305.18290)", _DPO, "ε = 0"),
    "cdpo": LossEntry("conservative DPO", _PAIRWISE, inputs=_SMOOTHED, smoothing="constant"),
    "spa": LossEntry("DPO with SPA smoothing (arXiv 2406.04412)", _PAIRWISE, inputs=_SMOOTHED, smoothing="spa"),
    "robust": LossEntry(
        "robust DPO (arXiv 2403.00409)",
        "rosepo.objectives.rivals:robust",
        inputs=_SMOOTHED,
        smoothing="constant",
    ),
    "ipo": LossEntry(
        "IPO (arXiv 2310.12036)",
        "rosepo.objectives.rivals:ipo",
        lambda s: f"log-ratios {'a token' if s['ipo_average'] else 'summed over tokens'}",
        inputs=("ref_logps", "counts"),
        options={"average": AVERAGE},
    ),
    "simpo": LossEntry(
        "SimPO (arXiv 2405.14734)",
        "rosepo.objectives.rivals:simpo",
        "γ = {simpo_gamma:g}, no reference",
        inputs=("counts",),
        options={"gamma": GAMMA},
    ),
    "rpo": LossEntry(
        "RPO (arXiv 2405.16436)",
        _DPO,
        "ε = 0",
        sft_weight=1.0,
        without_sft="is dpo: use align.loss=dpo, or raise the weight",
    ),
    "sdpo": LossEntry("S-DPO (arXiv 2406.09215)", "rosepo.objectives.rivals:sdpo", "one-hot target"),
    "dmpo": LossEntry(
        "DMPO (arXiv 2405.16127)", "rosepo.objectives.rivals:dmpo", "the mean of the rejected titles' rewards"
    ),
    "ada_dpo": LossEntry(
        "Ada-DPO (arXiv 2406.02764)",
        "rosepo.objectives.rivals:ada_dpo",
        "τ from {ada_tau_min:g} to {ada_tau_max:g}, ρ = {ada_rho:g}",
        options={"tau_min": TAU_MIN, "tau_max": TAU_MAX, "rho": RHO},
        check=_check_tau,
        metrics=("ada_tau",),
    ),
    "sft": LossEntry(
        "fine-tuning on the chosen titles, without a preference",
        "rosepo.objectives.likelihood:no_preference",
        "no preference",
        inputs=(),
        preference=False,
        reads_rejected=False,
        sft_weight=1.0,
        without_sft="learns nothing: leave the weight out, or raise it",
    ),
    "distill": LossEntry(
        "distillation of the oracle over the whole catalogue",
        "rosepo.objectives.likelihood:distill",
        lambda s: "the oracle's whole distribution" if s["oracle_whole"] else "titles drawn from the oracle",
        inputs=("weights",),
        preference=False,
        whole=True,
    ),
}


def known_loss(name: str) -> str:
    """The name of a loss. Raises ValueError for any other."""
    if name not in LOSSES:
        raise ValueError(f"align.loss has no '{name}'{nearest(name, [*LOSSES])}")
    return name


LossName = Annotated[str, AfterValidator(known_loss)]


def loss_options() -> dict[str, Option]:
    """The options of all losses, by key."""
    return {option.key: option for loss in LOSSES.values() for option in loss.options.values()}


def losses_with(key: str) -> list[str]:
    """The losses that take a key of `align` which not all of them do."""
    return [name for name, loss in LOSSES.items() if key in loss.settings]


def loss_settings() -> tuple[str, ...]:
    """Keys of `align` that some losses take and others do not."""
    return tuple(dict.fromkeys(key for loss in LOSSES.values() for key in loss.settings))
