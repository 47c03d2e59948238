"""Weights that ZeRO-3 holds in parts: each call of a module gathers its own, and takes all ranks; and how ranks agree
on a number without waiting for a device."""

from __future__ import annotations

from functools import cache

import torch
import torch.distributed as dist
from torch import nn


def partitioned(module: nn.Module) -> bool:
    """Whether ZeRO-3 holds the weights in parts, so that a forward pass gathers them and takes all ranks."""
    return any(hasattr(parameter, "ds_id") for parameter in module.parameters())


def most_of_ranks(count: int) -> int:
    """The largest count of all ranks; every rank must ask."""
    if dist.get_world_size() == 1:
        return count
    found = torch.tensor([int(count)])
    dist.all_reduce(found, op=dist.ReduceOp.MAX, group=host_group())
    return int(found.numpy()[0])


def host_group() -> dist.ProcessGroup | None:
    """The group of all ranks for tensors on the CPU: through NCCL the host would wait for all that a GPU has to do
    before it knows a number that it had beforehand. The first call takes all ranks."""
    return None if dist.get_backend() == "gloo" else _gloo_beside(dist.group.WORLD)


@cache
def _gloo_beside(world: dist.ProcessGroup) -> dist.ProcessGroup:
    return dist.new_group(backend="gloo")
