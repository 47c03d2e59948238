"""The optimizer's state that a training leaves beside its model, for the next one to begin with (`align.optimizer`).

`<model folder>/_optimizer/adam.safetensors` holds both moments of every parameter that trained, whole and by name,
float32, and in its metadata the number of steps. It stands in a folder of its own, because some readers of model
folders (vLLM) take every safetensors file in them for weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from rosepo.training.checkpoint.state import gather_moments, import_moments, moment_shapes
from rosepo.utils.errors import StageError, UserError

if TYPE_CHECKING:
    from rosepo.training.engine import Engine

FILE = Path("_optimizer") / "adam.safetensors"
_REMEDY = "make it again, or use align.optimizer=fresh"


def save_optimizer_state(engine: Engine, folder: Path) -> None:
    """Write the moments of an engine beside the model in `folder`; every rank must call it, the first one writes.

    Raises:
        StageError: the disk is full.
    """
    tensors = gather_moments(engine)
    if dist.get_rank() != 0:
        return
    path = folder / FILE
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, path, metadata={"steps": str(engine.carried + engine.done)})
    except (OSError, SafetensorError) as error:
        raise StageError(f"the optimizer's state cannot be written to {path}: {error}") from error


def kept_optimizer_state(folder: Path, command: str) -> Path:
    """The file in a model folder.

    Args:
        command: what makes the model, for the message.

    Raises:
        UserError: there is none.
    """
    path = folder / FILE
    if not path.is_file():
        raise UserError(
            f"align.optimizer=sft goes on with the optimizer's state that a training has left beside its model, and "
            f"{folder} has none: run `{command} --overwrite`, or use align.optimizer=fresh"
        )
    return path


def steps_of(path: Path) -> int:
    """Steps that the state in a file has seen.

    Raises:
        UserError: a file that cannot be read.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            return int((file.metadata() or {})["steps"])
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): {_REMEDY}") from error


def begin_with(engine: Engine, path: Path, resumed: bool = False) -> None:
    """Let an engine's training begin with the moments in a file; every rank must call it before the first step.

    Args:
        resumed: the moments themselves will come from a checkpoint; the number of steps before the training does not.

    Raises:
        UserError: they are of other parameters than those that train, or cannot be read.
    """
    engine.carried = steps_of(path)
    if resumed:
        return
    with safe_open(path, framework="numpy") as file:
        names = list(file.keys())
        found = {name: list(file.get_slice(name).get_shape()) for name in names}
    expected = moment_shapes(engine)
    other = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
    if other:
        name = other[0].partition("/")[2]
        raise UserError(
            f"{path} is the optimizer's state of another model: {name} has {found.get(other[0], 'none')} there and "
            f"{expected.get(other[0], 'none')} in training; {_REMEDY}"
        )
    import_moments(engine, path, _REMEDY)
