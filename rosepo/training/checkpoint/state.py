"""The state of training, out of a DeepSpeed engine and into another one, whatever their ZeRO stages and ranks.

What is exchanged are whole float32 tensors by name: a parameter's master weight and the two moments of Adam. Only
parameters that train have any; the others come from the model that training starts from.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.distributed as dist

from rosepo.training.zero import MOMENTS, WEIGHT, create_moments, link_moments, put_whole, size_of, trained_parameters

if TYPE_CHECKING:
    from rosepo.training.checkpoint.checkpoint_files import Checkpoint
    from rosepo.training.engine import Engine

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

    link_moments(engine)
    trained = trained_parameters(engine)
    owners = dealt_out({name: size_of(parameter) for name, parameter in trained.items()}, engine.world)
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
    trained = trained_parameters(engine)
    if not weights_only:
        create_moments(engine, engine.carried + checkpoint.step)
        engine.done = checkpoint.step
    parts = (weight,) if weights_only else (weight, *MOMENTS)
    left = {f"{part}/{name}" for name in trained for part in parts}
    for key, array in checkpoint.tensors(parts):
        part, _, name = key.partition("/")
        if name in trained:
            left.remove(key)
            put_whole(engine, trained[name], WEIGHT if part == weight else part, torch.from_numpy(array))
    if left:
        raise ValueError(f"{checkpoint.folder} holds no {min(left)}")


@torch.no_grad()
def import_moments(engine: Engine, tensors: Iterable[tuple[str, np.ndarray]]) -> None:
    """Put moments of Adam, as after `engine.carried` steps, into an engine before its first step; every rank must call
    it.

    Args:
        tensors: `exp_avg/<parameter>` and `exp_avg_sq/<parameter>` of every parameter that trains, float32.
    """
    trained = trained_parameters(engine)
    create_moments(engine, engine.carried)
    for key, array in tensors:
        part, _, name = key.partition("/")
        put_whole(engine, trained[name], part, torch.from_numpy(array))


def moment_shapes(engine: Engine) -> dict[str, list[int]]:
    """Names and shapes of the tensors that `import_moments` takes."""
    shapes = {name: list(getattr(one, "ds_shape", one.shape)) for name, one in trained_parameters(engine).items()}
    return {f"{part}/{name}": shape for name, shape in shapes.items() for part in MOMENTS}


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
