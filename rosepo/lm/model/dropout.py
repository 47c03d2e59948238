"""Dropout of models that are trained: added where a small one needs it, switched off where two models are compared."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.hooks import RemovableHandle


def training_dropout(model: nn.Module, p: float) -> list[RemovableHandle]:
    """Dropout on the embeddings and on both residual branches of every layer, while the model is in training mode.

    Llama has no such dropout, and a small model on a small catalogue needs it. Hooks carry it, so that weights, config
    and saved folder stay those of a plain Llama. Returns the hooks' handles; none for p = 0.
    """
    if p == 0:
        return []
    ends = ("embed_tokens", "self_attn.o_proj", "mlp.down_proj")
    places = [module for name, module in model.named_modules() if name.endswith(ends)]
    if not places:
        raise ValueError(f"{type(model).__name__} has none of the modules {', '.join(ends)} that dropout follows")
    return [module.register_forward_hook(_Dropout(p)) for module in places]


class _Dropout:
    """A forward hook that can travel to another process with its model."""

    def __init__(self, p: float) -> None:
        self.p = p

    def __call__(self, module: nn.Module, _inputs: object, output: torch.Tensor) -> torch.Tensor:
        return F.dropout(output, self.p, module.training)


def disable_dropout(model: nn.Module) -> None:
    """Set every dropout of a model to 0, in place, attention's included; the model may stay in training mode."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        # Some families (OPT, Phi) keep rates as plain numbers and call functional dropout.
        for name, value in vars(module).items():
            if isinstance(value, float) and ("dropout" in name or name == "layerdrop"):
                setattr(module, name, 0.0)
