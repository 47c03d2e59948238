"""The losses of the table, called as training calls them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from rosepo.config import LOSSES
from rosepo.objectives.rewards import Metrics
from rosepo.utils.imports import find_callable


def function_of(name: str) -> Callable[..., tuple[Tensor, Metrics]]:
    return find_callable(LOSSES[name].function, f"align.loss={name}")


def called(
    name: str, policy: Tensor, inputs: Mapping[str, Tensor], beta: float, **options: Any
) -> tuple[Tensor, Metrics]:
    """Loss [G] and metrics of a named loss; takes of the inputs what it reads."""
    loss = LOSSES[name]
    strength = {"beta": beta} if loss.preference else {}
    return function_of(name)(policy, **{key: inputs[key] for key in loss.inputs}, **strength, **options)
