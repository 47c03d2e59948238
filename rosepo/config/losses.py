"""The losses of `align.loss`: what each one is, the settings that it takes, and the smoothing that it brings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

LossName = Literal[
    "pairwise",
    "softmax",
    "dpo",
    "cdpo",
    "spa",
    "robust",
    "ipo",
    "simpo",
    "rpo",
    "sdpo",
    "dmpo",
    "ada_dpo",
    "sft",
    "distill",
]
Smoothing = Literal["oracle", "constant", "shuffled", "zero", "spa"]


@dataclass(frozen=True)
class LossFacts:
    """What the configuration knows of a loss.

    Attributes:
        described: its name and source, for people.
        options: keys of `align` that it takes and not every other loss does.
        smoothing: the kind of epsilon that it stands for; None where it takes none, or leaves it to `align.epsilon`.
        reference_free: it knows no reference model.
        preference: it compares titles, and `align.beta` says how strongly; the others are likelihoods.
    """

    described: str
    options: tuple[str, ...] = ()
    smoothing: Smoothing | None = None
    reference_free: bool = False
    preference: bool = True


_ROSEPO = "smoothed labels (RosePO, arXiv 2410.12519)"

LOSSES: dict[LossName, LossFacts] = {
    "pairwise": LossFacts(_ROSEPO, ("epsilon", "epsilon_max", "epsilon_value", "spa_quantile")),
    "softmax": LossFacts(f"{_ROSEPO} over whole groups", ("target_min", "target_mix")),
    "dpo": LossFacts("DPO (arXiv 2305.18290)"),
    "cdpo": LossFacts("conservative DPO", ("epsilon_max", "epsilon_value"), "constant"),
    "spa": LossFacts("DPO with SPA smoothing (arXiv 2406.04412)", ("epsilon_value", "spa_quantile"), "spa"),
    "robust": LossFacts("robust DPO (arXiv 2403.00409)", ("epsilon_max", "epsilon_value"), "constant"),
    "ipo": LossFacts("IPO (arXiv 2310.12036)", ("ipo_average",)),
    "simpo": LossFacts("SimPO (arXiv 2405.14734)", ("simpo_gamma",), reference_free=True),
    "rpo": LossFacts("RPO (arXiv 2405.16436)"),
    "sdpo": LossFacts("S-DPO (arXiv 2406.09215)"),
    "dmpo": LossFacts("DMPO (arXiv 2405.16127)"),
    "ada_dpo": LossFacts("Ada-DPO (arXiv 2406.02764)", ("ada_tau_min", "ada_tau_max", "ada_rho")),
    "sft": LossFacts("fine-tuning on the chosen titles, without a preference", reference_free=True, preference=False),
    "distill": LossFacts("distillation of the oracle over the whole catalogue", reference_free=True, preference=False),
}


def users_of(key: str) -> tuple[LossName, ...]:
    """The losses that take a key of `align`; empty where all of them do."""
    return tuple(name for name, facts in LOSSES.items() if key in facts.options)


OPTIONS = tuple(dict.fromkeys(option for facts in LOSSES.values() for option in facts.options))
"""Keys of `align` that some losses take and others do not."""
