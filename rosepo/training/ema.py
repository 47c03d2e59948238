"""A running mean of the weights: it ranks better than the weights of any one step, above all while the learning rate is
high (Polyak and Juditsky, 1992; exponential, as in Tarvainen and Valpola, arXiv 1703.01780).

Every rank keeps the mean of the float32 shares that it steps on itself, so that the mean is divided as the optimizer's
state is, at every ZeRO stage, and following it takes no communication.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rosepo.training.zero import master_shares, publish_masters

if TYPE_CHECKING:
    from rosepo.training.engine import Engine


@torch.no_grad()
def follow_mean(mean: Sequence[Tensor], weights: Sequence[Tensor], step: int, decay: float) -> None:
    """Move an exponential mean towards the weights after step 1, 2, …, in place; `decay` is the share of the mean that
    stays, less in the first steps: (1 + t) / (10 + t) after step t."""
    torch._foreach_lerp_(list(mean), list(weights), 1.0 - min(decay, (1.0 + step) / (10.0 + step)))


class WeightMean:
    """One rank's share of an exponential mean of the weights that train.

    Args:
        engine: it begins as this engine's weights.
        decay: see `follow_mean`.

    Attributes:
        shares: the mean, or while it has changed places with them the weights, laid out as `zero.master_shares` is.
    """

    def __init__(self, engine: Engine, decay: float) -> None:
        self.engine, self.decay = engine, decay
        self.shares = [master.clone() for master in self._masters()]

    def follow(self, step: int) -> None:
        """Move on after step 1, 2, …"""
        follow_mean(self.shares, self._masters(), step, self.decay)

    @torch.no_grad()
    def begin(self) -> None:
        """Begin anew as the engine's weights."""
        torch._foreach_copy_(self.shares, self._masters())

    @torch.no_grad()
    def swap(self) -> None:
        """Let mean and weights change places, in the weights that are computed with too; every rank must call it."""
        for share, master in zip(self.shares, self._masters(), strict=True):
            weights = master.clone()
            master.copy_(share)
            share.copy_(weights)
        publish_masters(self.engine)

    def _masters(self) -> list[Tensor]:
        return [share.detach() for share in master_shares(self.engine)]


@contextmanager
def mean_in_place(mean: WeightMean | None) -> Iterator[None]:
    """Within, the engine's weights are their running mean, where one is kept; every rank must enter it."""
    if mean is None:
        yield
        return
    mean.swap()
    try:
        yield
    finally:
        mean.swap()
