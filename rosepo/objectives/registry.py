"""The objectives by name (`align.loss`): what each one reads of a batch, and which settings it takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from rosepo.objectives import likelihood, rivals, rosepo
from rosepo.objectives.rewards import Metrics


@dataclass(frozen=True)
class Objective:
    """One named objective.

    Attributes:
        name: what `align.loss` calls it.
        function: the pure function behind it.
        inputs: what it reads beside the policy's log-probabilities, as it names them: `ref_logps` [G, 1 + K], `epsilon`
            [G, K], `targets`, `weights` and `counts` [G, 1 + K].
        options: its own hyper-parameters, beside beta, and the setting of `align` that holds each.
        takes_beta: whether beta is one.
        reads_rejected: whether it looks at the rejected completions; without, K is 0.
    """

    name: str
    function: Callable[..., tuple[Tensor, Metrics]]
    inputs: tuple[str, ...] = ("ref_logps",)
    options: Mapping[str, str] = field(default_factory=dict)
    takes_beta: bool = True
    reads_rejected: bool = True

    @property
    def reference_free(self) -> bool:
        """Whether the loss knows no reference model."""
        return "ref_logps" not in self.inputs

    def __call__(
        self, policy_logps: Tensor, inputs: Mapping[str, Tensor], beta: float, **options: Any
    ) -> tuple[Tensor, Metrics]:
        """Loss [G] and metrics of policy_logps [G, 1 + K] and exactly the inputs and options that it uses; `beta` is
        left aside by one that takes none.

        Raises:
            ValueError: one that is missing or that it does not use, a reference above all; see also the function.
        """
        if self.reference_free and "ref_logps" in inputs:
            raise ValueError(f"{self.name} is reference-free: it takes no reference log-probabilities")
        for kind, known, given in (("input", self.inputs, inputs), ("option", self.options, options)):
            for name in [*known, *given]:
                if name not in given or name not in known:
                    verb = "needs" if name in known else "does not use"
                    raise ValueError(f"{self.name} {verb} the {kind} {name}: it takes {', '.join(known) or 'none'}")
        strength = {"beta": beta} if self.takes_beta else {}
        return self.function(policy_logps, **strength, **inputs, **options)


_SMOOTHED = ("ref_logps", "epsilon")
_ADA = {"tau_min": "ada_tau_min", "tau_max": "ada_tau_max", "rho": "ada_rho"}

OBJECTIVES: dict[str, Objective] = {
    objective.name: objective
    for objective in (
        Objective("pairwise", rosepo.pairwise, _SMOOTHED),
        Objective("softmax", rosepo.softmax, ("ref_logps", "targets")),
        Objective("dpo", rivals.dpo),
        Objective("cdpo", rosepo.pairwise, _SMOOTHED),
        Objective("spa", rosepo.pairwise, _SMOOTHED),
        Objective("robust", rivals.robust, _SMOOTHED),
        Objective("ipo", rivals.ipo, ("ref_logps", "counts"), {"average": "ipo_average"}),
        Objective("simpo", rivals.simpo, ("counts",), {"gamma": "simpo_gamma"}),
        # Its second term is `chosen_nll`, which `align.sft_weight` adds to any objective.
        Objective("rpo", rivals.dpo),
        Objective("sdpo", rivals.sdpo),
        Objective("dmpo", rivals.dmpo),
        Objective("ada_dpo", rivals.ada_dpo, ("ref_logps",), _ADA),
        # Nothing but the term that `align.sft_weight` adds.
        Objective("sft", likelihood.no_preference, (), takes_beta=False, reads_rejected=False),
        Objective("distill", likelihood.distill, ("weights",), takes_beta=False),
    )
}
"""All of them take groups of any K."""
