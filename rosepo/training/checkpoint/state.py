"""The state of training, out of a DeepSpeed engine and into another one, whatever their ZeRO stages and ranks.

What is exchanged are whole float32 tensors by name: a parameter's master weight and the two moments of Adam. Only
parameters that train have any; the others come from the model that training starts from.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    from rosepo.training.checkpoint.files import Checkpoint
    from rosepo.training.engine import Engine

WEIGHT, MOMENTS = "weight", ("exp_avg", "exp_avg_sq")
"""Parts of the state of a parameter."""
MEAN = "mean"
"""In a checkpoint, the running mean of a weight."""


def dealt_out(sizes: dict[str, int], world: int) -> dict[str, int]:
    """The rank that writes each parameter: largest first, to the one with the least so far."""
    filled = np.zeros(world, dtype=np.int64)
    owner = {}
    for name, size in sorted(sizes.items(), key=lambda entry: (-entry[1], entry[0])):
        owner[name] = int(np.argmin(filled))
        filled[owner[name]] += size
    return owner


def export_state(
    engine: Engine, parts: tuple[str, ...] = (WEIGHT, *MOMENTS), owner: int | None = None
) -> dict[str, np.ndarray]:
    """This rank's share of the state after a step, copied to the CPU; every rank must call it.

    Args:
        parts: of the state of each parameter.
        owner: the rank whose share is everything; None deals it out.

    Returns:
        `weight/<parameter>`, `exp_avg/<parameter>` and `exp_avg_sq/<parameter>`, float32.
    """
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    _link_moments(engine)
    trained = _trained(engine)
    owners = dealt_out({name: _size(parameter) for name, parameter in trained.items()}, engine.world)
    share: dict[str, np.ndarray] = {}
    for name, parameter in trained.items():
        for part in parts:
            if engine.train.zero_stage == 0:
                whole = parameter.detach() if part == WEIGHT else engine.optimizer.state[parameter][part]
            elif part == WEIGHT:
                whole = safe_get_full_fp32_param(parameter)
            else:
                whole = safe_get_full_optimizer_state(parameter, part)
            if (owners[name] if owner is None else owner) == dist.get_rank():
                share[f"{part}/{name}"] = whole.detach().to("cpu", torch.float32, copy=True).contiguous().numpy()
    return share


@torch.no_grad()
def import_state(engine: Engine, checkpoint: Checkpoint, weights_only: bool = False, weight: str = WEIGHT) -> None:
    """Put a checkpoint's weights, moments and number of steps into an engine; every rank must call it.

    Args:
        weights_only: leave the optimizer as it is.
        weight: what becomes the weights, `WEIGHT` or `MEAN`.

    Raises:
        ValueError: a parameter that trains has no such tensor, or one of another shape.
    """
    trained = _trained(engine)
    if not weights_only:
        _create_moments(engine, engine.carried + checkpoint.step)
        engine.done = checkpoint.step
    parts = (weight,) if weights_only else (weight, *MOMENTS)
    left = {f"{part}/{name}" for name in trained for part in parts}
    for key, array in checkpoint.tensors(parts):
        part, _, name = key.partition("/")
        if name in trained:
            left.remove(key)
            _put(engine, trained[name], WEIGHT if part == weight else part, torch.from_numpy(array))
    if left:
        raise ValueError(f"{checkpoint.folder} holds no {min(left)}")


@torch.no_grad()
def import_moments(engine: Engine, tensors: Iterable[tuple[str, np.ndarray]]) -> None:
    """Put moments of Adam, as after `engine.carried` steps, into an engine before its first step; every rank must call
    it.

    Args:
        tensors: `exp_avg/<parameter>` and `exp_avg_sq/<parameter>` of every parameter that trains, float32.
    """
    trained = _trained(engine)
    _create_moments(engine, engine.carried)
    for key, array in tensors:
        part, _, name = key.partition("/")
        _put(engine, trained[name], part, torch.from_numpy(array))


@torch.no_grad()
def publish_masters(engine: Engine) -> None:
    """Let the weights that are computed with follow the float32 masters, which have changed; every rank calls it."""
    if engine.train.zero_stage == 0:
        return  # they are the masters
    from deepspeed.utils import safe_get_full_fp32_param

    for parameter in _trained(engine).values():
        _put(engine, parameter, WEIGHT, safe_get_full_fp32_param(parameter).clone())


def moment_shapes(engine: Engine) -> dict[str, list[int]]:
    """Names and shapes of the tensors that `import_moments` takes."""
    shapes = {name: list(getattr(one, "ds_shape", one.shape)) for name, one in _trained(engine).items()}
    return {f"{part}/{name}": shape for name, shape in shapes.items() for part in MOMENTS}


def _put(engine: Engine, parameter: Tensor, part: str, value: Tensor) -> None:
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


def _create_moments(engine: Engine, steps: int) -> None:
    """Adam's state as it is after `steps` steps, of zeros: it comes into being with the first step only."""
    optimizer = engine.optimizer
    fused = bool(optimizer.defaults.get("fused"))
    for parameter in master_shares(engine):
        count = torch.tensor(float(steps), dtype=torch.float32, device=parameter.device if fused else "cpu")
        optimizer.state[parameter] = {"step": count} | {part: torch.zeros_like(parameter) for part in MOMENTS}
    _link_moments(engine)


def _link_moments(engine: Engine) -> None:
    """Tell ZeRO 1 and 2 where the moments are. DeepSpeed does that by itself once the first of its parameter groups has
    made its first step, when the others have no moments yet."""
    wrapper = engine.deepspeed.optimizer
    if hasattr(wrapper, "_lazy_init_hp_params_optimizer_state"):
        wrapper._hp_optimizer_states_linked = False
        wrapper._lazy_init_hp_params_optimizer_state()


def master_shares(engine: Engine) -> list[Tensor]:
    """What the optimizer steps on: this rank's flat float32 partitions, or at ZeRO-0 the parameters themselves."""
    wrapper = engine.deepspeed.optimizer
    for name in ("fp32_partitioned_groups_flat", "single_partition_of_fp32_groups", "fp32_groups_flat_partition"):
        if hasattr(wrapper, name):
            return list(getattr(wrapper, name))
    return [parameter for group in engine.optimizer.param_groups for parameter in group["params"]]


def _trained(engine: Engine) -> dict[str, Tensor]:
    return {name: parameter for name, parameter in engine.module.named_parameters() if parameter.requires_grad}


def _size(parameter: Any) -> int:
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def random_state(device: torch.device) -> dict[str, np.ndarray]:
    """This rank's random generators: `rng/<rank>` and, on a GPU, `cuda_rng/<rank>`, uint8."""
    rank = dist.get_rank()
    found = {f"rng/{rank}": torch.get_rng_state().numpy()}
    if device.type == "cuda":
        found[f"cuda_rng/{rank}"] = torch.cuda.get_rng_state(device).numpy()
    return found


def restore_random_state(found: dict[str, np.ndarray], device: torch.device, seed: int) -> None:
    """Put back what `random_state` gave this rank. A rank without one, because ranks were added, begins anew."""
    rank = dist.get_rank()
    if f"rng/{rank}" not in found:
        torch.manual_seed(seed)
        return
    torch.set_rng_state(torch.from_numpy(found[f"rng/{rank}"].copy()))
    if device.type == "cuda" and f"cuda_rng/{rank}" in found:
        torch.cuda.set_rng_state(torch.from_numpy(found[f"cuda_rng/{rank}"].copy()), device)
