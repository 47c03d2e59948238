"""Where DeepSpeed keeps masters and moments, by ZeRO stage: found, and put back whole.

The one module that knows DeepSpeed's wrappers of an optimizer from within.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    from rosepo.training.engine import Engine

WEIGHT, MOMENTS = "weight", ("exp_avg", "exp_avg_sq")
"""Parts of the state of a parameter."""


def master_shares(engine: Engine) -> list[Tensor]:
    """What the optimizer steps on: this rank's flat float32 partitions, or at ZeRO-0 the parameters themselves."""
    wrapper = engine.deepspeed.optimizer
    for name in ("fp32_partitioned_groups_flat", "single_partition_of_fp32_groups", "fp32_groups_flat_partition"):
        if hasattr(wrapper, name):
            return list(getattr(wrapper, name))
    return [parameter for group in engine.optimizer.param_groups for parameter in group["params"]]


@torch.no_grad()
def publish_masters(engine: Engine) -> None:
    """Let the weights that are computed with follow the float32 masters, which have changed; every rank calls it."""
    if engine.train.zero_stage == 0:
        return  # they are the masters
    from deepspeed.utils import safe_get_full_fp32_param

    for parameter in trained_parameters(engine).values():
        put_whole(engine, parameter, WEIGHT, safe_get_full_fp32_param(parameter).clone())


def put_whole(engine: Engine, parameter: Tensor, part: str, value: Tensor) -> None:
    """Set a part (`WEIGHT` or one of `MOMENTS`) of a parameter's state from its whole value; every rank must call it.

    Raises:
        ValueError: another shape.
    """
    shape = tuple(getattr(parameter, "ds_shape", parameter.shape))
    if tuple(value.shape) != shape:
        raise ValueError(f"a checkpoint holds a {part} of shape {tuple(value.shape)} for a parameter of {shape}")
    if engine.train.zero_stage == 0:
        target = parameter.data if part == WEIGHT else engine.optimizer.state[parameter][part]
        target.copy_(value)
    elif engine.train.zero_stage == 3:
        _put_partition(parameter, part, value)
    else:
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        value = value.to(parameter.device)
        if part == WEIGHT:
            safe_set_full_fp32_param(parameter, value)
            parameter.data.copy_(value)
        else:
            safe_set_full_optimizer_state(parameter, value, part)


def _put_partition(parameter: Any, part: str, value: Tensor) -> None:
    """ZeRO-3: this rank's partition. DeepSpeed's setter of whole values takes no parameter that is padded."""
    from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

    size = parameter.ds_tensor.numel()
    start = size * dist.get_rank()
    mine = value.new_zeros(size)
    real = value.flatten()[start : start + size]
    mine[: len(real)] = real
    if part != WEIGHT:
        safe_set_local_optimizer_state(parameter, mine, part)
        return
    safe_set_local_fp32_param(parameter, mine)
    parameter.ds_tensor.data.copy_(mine)
    if parameter.data.numel() == value.numel():  # small parameters stay whole on every rank
        parameter.data.copy_(value.view_as(parameter.data))


def create_moments(engine: Engine, steps: int) -> None:
    """Adam's state as it is after `steps` steps, of zeros: it comes into being with the first step only."""
    optimizer = engine.optimizer
    fused = bool(optimizer.defaults.get("fused"))
    for parameter in master_shares(engine):
        count = torch.tensor(float(steps), dtype=torch.float32, device=parameter.device if fused else "cpu")
        optimizer.state[parameter] = {"step": count} | {part: torch.zeros_like(parameter) for part in MOMENTS}
    link_moments(engine)


def link_moments(engine: Engine) -> None:
    """Tell ZeRO 1 and 2 where the moments are. DeepSpeed does that by itself once the first of its parameter groups has
    made its first step, when the others have no moments yet."""
    wrapper = engine.deepspeed.optimizer
    if hasattr(wrapper, "_lazy_init_hp_params_optimizer_state"):
        wrapper._hp_optimizer_states_linked = False
        wrapper._lazy_init_hp_params_optimizer_state()


def trained_parameters(engine: Engine) -> dict[str, Tensor]:
    """Those that take gradients, by name."""
    return {name: parameter for name, parameter in engine.module.named_parameters() if parameter.requires_grad}


def size_of(parameter: Any) -> int:
    """Numbers in the whole of a parameter, which ZeRO-3 may have divided."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))
