"""What a model is beneath an adapter, and how it makes logits of hidden states."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rosepo.lm.rows.partitioned import partitioned


def base_causal_lm(model: nn.Module) -> Any:
    """The causal LM itself: inside a PEFT model the one that carries the adapter's layers."""
    unwrap = getattr(model, "get_base_model", None)
    return model if unwrap is None else unwrap()


def learns_prompt(model: nn.Module) -> bool:
    """Whether an adapter puts learned tokens before the prompt."""
    adapted = getattr(model, "peft_type", None) is not None
    return adapted and bool(cast(Any, model).active_peft_config.is_prompt_learning)


class OutputLayer:
    """From hidden states to logits as the forward of a causal LM goes: its output layer, then its cap if it has one.

    Args:
        causal_lm: whose output layer it is.
        in_float32: whether logits are float32 also where the weights are bfloat16: rounded ones would tie among the
            best titles.

    Attributes:
        out_features: size of the vocabulary; 0 where the layer does not tell.
    """

    def __init__(self, causal_lm: Any, in_float32: bool = False) -> None:
        self._layer = causal_lm.get_output_embeddings()
        self._in_float32 = in_float32
        self._cap = getattr(causal_lm.config, "final_logit_softcapping", None)  # Gemma 2 and 3
        self.out_features = int(getattr(self._layer, "out_features", 0))

    def __call__(self, states: Tensor) -> Tensor:
        """[n, d] to [n, V]."""
        return self._capped(_linear_in_float32(self._layer, states) if self._in_float32 else self._layer(states))

    def _capped(self, logits: Tensor) -> Tensor:
        return logits if self._cap is None else torch.tanh(logits / self._cap) * self._cap


@contextmanager
def float32_logits(causal_lm: Any) -> Iterator[None]:
    """Meanwhile the model's own forward takes its logits in float32; see `OutputLayer`."""
    layer = causal_lm.get_output_embeddings()
    if type(layer) is not nn.Linear or layer.weight.dtype == torch.float32:
        yield
        return
    layer.forward = partial(_float32_product, layer)  # type: ignore[method-assign]
    try:
        yield
    finally:
        del layer.forward


def _linear_in_float32(layer: nn.Module, states: Tensor) -> Tensor:
    if type(layer) is not nn.Linear or layer.weight.dtype == torch.float32:
        return cast(Tensor, layer(states)).float()
    if not partitioned(layer):
        return _float32_product(layer, states)
    import deepspeed

    with deepspeed.zero.GatheredParameters(list(layer.parameters())):
        return _float32_product(layer, states)


def _float32_product(layer: nn.Linear, states: Tensor) -> Tensor:
    return F.linear(states.float(), layer.weight.float(), None if layer.bias is None else layer.bias.float())
