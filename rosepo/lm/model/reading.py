"""Weights that are given away as they are read from a model's files, so that no process ever holds all of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

Taker = Callable[[nn.Parameter], None]
"""Takes the numbers out of a parameter, which stays where it is in its module."""

_TAKER: ContextVar[Taker | None] = ContextVar("taker", default=None)
_ONE_BY_ONE = "HF_DEACTIVATE_ASYNC_LOAD"


@contextmanager
def given_to(taker: Taker | None) -> Iterator[None]:
    """Within, matrices of models are given to `taker` one after another as they are read; None keeps them."""
    token = _TAKER.set(taker)
    try:
        yield
    finally:
        _TAKER.reset(token)


@contextmanager
def given_away(whole: bool) -> Iterator[None]:
    """Around a call of `from_pretrained`, which reads the weights that `given_to` gives away.

    Vectors, and what has the shape of an embedding, stay: Transformers compares an output layer with the embedding that
    it may be tied to, when both are there. The taker gets them with the rest of the module.

    Args:
        whole: give nothing away, for what is done with the weights before they are trained.
    """
    taker = _TAKER.get()
    if taker is None or whole:
        yield
        return
    kept: set[torch.Size] = set()

    def registered(module: nn.Module, _name: str, parameter: nn.Parameter | None) -> None:
        if parameter is None:
            return
        if isinstance(module, nn.Embedding):
            kept.add(parameter.shape)
        # The mark of Transformers on what has its weights: before, and in adapters, parameters are still to be filled.
        filled = getattr(parameter, "_is_hf_initialized", False) and not parameter.is_meta
        if filled and parameter.dim() > 1 and parameter.shape not in kept:
            taker(parameter)

    handle = register_module_parameter_registration_hook(registered)
    before = os.environ.get(_ONE_BY_ONE)
    os.environ[_ONE_BY_ONE] = "1"  # else threads read all files ahead
    try:
        yield
    finally:
        handle.remove()
        del os.environ[_ONE_BY_ONE]
        if before is not None:
            os.environ[_ONE_BY_ONE] = before
