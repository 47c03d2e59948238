"""Weights that ZeRO-3 holds in parts: each call of a module gathers its own, and takes all ranks."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn


def partitioned(module: nn.Module) -> bool:
    """Whether ZeRO-3 holds the weights in parts, so that a forward pass gathers them and takes all ranks."""
    return any(hasattr(parameter, "ds_id") for parameter in module.parameters())


def most_of_ranks(count: int, device: torch.device) -> int:
    """The largest count of all ranks; every rank must ask."""
    if dist.get_world_size() == 1:
        return count
    found = torch.tensor(int(count), device=device)
    dist.all_reduce(found, op=dist.ReduceOp.MAX)
    return int(found)
