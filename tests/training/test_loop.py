"""The training loop: how often a step waits for its device."""

from __future__ import annotations

import gc
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.accelerator import get_accelerator
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from rosepo.run.paths import RunPaths
from rosepo.training.align import align_task
from rosepo.training.loop import Loop
from rosepo.training.rank import fit_in_process
from rosepo.training.sft import sft_task
from tests.training.tiny_run import tiny_config

WAITING = {"aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero", "aten::equal", "aten::masked_select"}
"""Operations whose results the host has to know, on every device."""
COPYING = {Tensor.tolist, Tensor.cpu, Tensor.numpy}
"""What takes a tensor to the host without such an operation."""
Waits = Counter[str]
"""How often, by the package that asks."""


class _Scalars(TorchDispatchMode):
    def __init__(self, waits: Waits) -> None:
        super().__init__()
        self.waits = waits

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        masks = args[1] if func.name().startswith("aten::index") and isinstance(args[1], (list, tuple)) else ()
        if func.name() in WAITING or any(one is not None and one.dtype == torch.bool for one in masks):
            self.waits[_asker()] += 1
        return func(*args, **(kwargs or {}))


class _Copies(TorchFunctionMode):
    def __init__(self, waits: Waits) -> None:
        super().__init__()
        self.waits = waits

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        # By its name: the device of batches, which they are moved to, is the CPU here too.
        if func in COPYING or (func is Tensor.to and any(isinstance(one, str) for one in args[1:])):
            self.waits[_asker()] += 1
        return func(*args, **kwargs)


def _asker() -> str:
    """The package of the innermost frame that is neither torch's nor of this file."""
    frame = sys._getframe(1)
    while (name := frame.f_globals.get("__name__", "")).partition(".")[0] == "torch" or name == __name__:
        assert frame.f_back is not None
        frame = frame.f_back
    return name.partition(".")[0]


def waits_of(task: Any, out: Path, monkeypatch: pytest.MonkeyPatch) -> list[Waits]:
    """Of every step of a training that logs none but its last."""
    found: list[Waits] = []
    one_step, synchronize = Loop._step, get_accelerator().synchronize

    def step(loop: Loop, *arguments: Any) -> Any:
        found.append(Counter())
        with _Scalars(found[-1]), _Copies(found[-1]):
            return one_step(loop, *arguments)

    def synchronized(*arguments: Any) -> Any:
        found[-1]["synchronize"] += bool(found)
        return synchronize(*arguments)

    gc.collect()  # an engine of an earlier training waits for its device when it goes
    gc.disable()
    try:
        with monkeypatch.context() as patched:
            patched.setattr(Loop, "_step", step)
            patched.setattr(get_accelerator(), "synchronize", synchronized)
            fit_in_process(task, out)
    finally:
        gc.enable()
    return found


def sft_of(tiny_run: RunPaths, run: RunPaths, **train: Any) -> Any:
    return sft_task(tiny_config(**train), tiny_run)


def align_of(tiny_run: RunPaths, run: RunPaths, **train: Any) -> Any:
    return align_task(tiny_config("align", **train), run)


@pytest.mark.parametrize(
    ("make", "settings"),
    [
        (sft_of, {}),
        (sft_of, {"pack_tokens": 64}),
        (align_of, {"loss": "softmax", "rows": "trajectory"}),
        (align_of, {"loss": "pairwise"}),
        (align_of, {"loss": "pairwise", "rows": "trajectory", "pack_tokens": 120, "sft_weight": 0.5}),
    ],
    ids=["sft", "sft-packed", "softmax", "pairwise", "pairwise-packed"],
)
def test_a_micro_batch_waits_once_at_most_and_a_step_once_more(
    tiny_run: RunPaths, run: RunPaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Any, settings: Any
) -> None:
    found = {}
    for micro in (8, 1):
        task = make(tiny_run, run, micro_batch_size=micro, log_every=1000, **settings)
        # The first steps set up what DeepSpeed keeps, and an epoch's last may be short.
        found[micro] = waits_of(task, tmp_path / str(micro), monkeypatch)[1:3]
        for waits in found[micro]:
            assert waits["rosepo"] == 1  # whether loss and gradient are finite
            assert waits["synchronize"] == 0
    for whole, split in zip(found[8], found[1], strict=True):
        # Seven more micro-batches; what is the step's own, such as DeepSpeed's clipping, is there once in both.
        assert split.total() - whole.total() <= 7


def test_what_waits_is_counted() -> None:
    waits: Waits = Counter()
    with _Scalars(waits), _Copies(waits):
        assert _rosepo_side(torch.ones(2)) == 1.0
    assert waits.total() == 5


def _rosepo_side(values: Tensor) -> float:
    values.cpu()
    values.tolist()
    values.to("cpu")
    values[values > 2]
    return float(values[0])
