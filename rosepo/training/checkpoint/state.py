"""The state of training, out of a DeepSpeed engine and into another one, whatever their ZeRO stages and ranks.

It is float32 numbers of parameters by name: of a parameter's master weight and of the two moments of Adam. Each rank
gives what it steps on itself and takes what it will step on, wherever that lies, so that nothing is gathered. Only
parameters that train have any; the others come from the model that training starts from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from rosepo.lm.rows.partitioned import shape_of, size_of
from rosepo.training.checkpoint.pieces import Place, flat_slice, opened
from rosepo.training.zero import (
    MOMENTS,
    WEIGHT,
    create_moments,
    fragments,
    link_moments,
    master_shares,
    moment_shares,
    publish_masters,
    trained_parameters,
)

if TYPE_CHECKING:
    from rosepo.training.checkpoint.checkpoint_files import Checkpoint
    from rosepo.training.engine import Engine

MEAN = "mean"
"""In a checkpoint, the running mean of a weight."""


def own_state(engine: Engine, shares: Mapping[str, Sequence[Tensor]]) -> tuple[dict[str, np.ndarray], dict[str, Place]]:
    """This rank's part of the state: on the CPU the very memory that the next step changes, from a GPU a copy.

    Args:
        shares: by kind (`weight`, `exp_avg`, …), laid out as `master_shares` is.

    Returns:
        `<kind>/<parameter>` with float32 [n], and the place of each.
    """
    sizes = {name: size_of(parameter) for name, parameter in trained_parameters(engine).items()}
    pieces, places = {}, {}
    for fragment in fragments(engine, once=True):
        for kind, laid_out in shares.items():
            key = f"{kind}/{fragment.name}"
            pieces[key] = fragment.of(laid_out).to("cpu", torch.float32).numpy()
            places[key] = Place(fragment.start, sizes[fragment.name])
    return pieces, places


def gather_moments(engine: Engine) -> dict[str, np.ndarray]:
    """The moments of all ranks, whole, on rank 0; nothing on the others. Every rank must call it.

    Returns:
        `exp_avg/<parameter>` and `exp_avg_sq/<parameter>`, float32.
    """
    from deepspeed.utils import safe_get_full_optimizer_state

    link_moments(engine)
    found: dict[str, np.ndarray] = {}
    for name, parameter in trained_parameters(engine).items():
        for part in MOMENTS:
            if engine.train.zero_stage == 0:
                whole = engine.optimizer.state[parameter][part]
            else:
                whole = safe_get_full_optimizer_state(parameter, part)
            if dist.get_rank() == 0:
                found[f"{part}/{name}"] = whole.detach().to("cpu", torch.float32, copy=True).contiguous().numpy()
    return found


@torch.no_grad()
def import_state(engine: Engine, checkpoint: Checkpoint, weights_only: bool = False, weight: str = WEIGHT) -> None:
    """Put a checkpoint's weights, moments and number of steps into an engine; every rank must call it.

    Args:
        weights_only: leave the optimizer as it is.
        weight: what becomes the weights, `WEIGHT` or `MEAN`.

    Raises:
        ValueError: of a parameter that trains not all numbers are there, or it has another size.
    """
    shares = {weight: master_shares(engine)}
    if not weights_only:
        create_moments(engine, engine.carried + checkpoint.step)
        engine.done = checkpoint.step
        shares |= moment_shares(engine)
    sizes = {name: size_of(parameter) for name, parameter in trained_parameters(engine).items()}
    reader = checkpoint.reader(dist.get_rank())
    for fragment in fragments(engine):
        for kind, laid_out in shares.items():
            stop = fragment.start + fragment.size
            numbers = reader.read(f"{kind}/{fragment.name}", fragment.start, stop, sizes[fragment.name])
            fragment.of(laid_out).copy_(torch.from_numpy(numbers))
    publish_masters(engine)


@torch.no_grad()
def import_moments(engine: Engine, path: Path, remedy: str) -> None:
    """Put moments of Adam, as after `engine.carried` steps, into an engine before its first step.

    Args:
        path: safetensors with `exp_avg/<parameter>` and `exp_avg_sq/<parameter>` of every parameter that trains, whole.
        remedy: where it cannot be read.
    """
    create_moments(engine, engine.carried)
    shares = moment_shares(engine)
    for fragment in fragments(engine):
        with opened(path, remedy) as file:
            for part in MOMENTS:
                stop = fragment.start + fragment.size
                numbers = flat_slice(file, f"{part}/{fragment.name}", fragment.start, stop)
                fragment.of(shares[part]).copy_(torch.from_numpy(numbers))


def moment_shapes(engine: Engine) -> dict[str, list[int]]:
    """Names and shapes of the tensors that `import_moments` takes."""
    shapes = {name: shape_of(parameter) for name, parameter in trained_parameters(engine).items()}
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
