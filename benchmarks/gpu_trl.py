"""Rows `trl.*` of benchmarks/gpu.py: the product's steps beside TRL's DPOTrainer, on one CUDA device."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from benchmarks import synthetic, trl_side
from benchmarks.common import Row
from benchmarks.gpu_steps import Shape, Taken, fitting, steps
from benchmarks.groups_run import Groups, write_table
from benchmarks.reference import groups
from benchmarks.sides import Side, sides
from rosepo.lm.model.scratch import train_tokenizer
from rosepo.run.paths import RunPaths

STEPS, QUICK_STEPS = 5, 2
TITLES = 500


def trl(name: str, shape: Shape, device: torch.device, quick: bool) -> Iterator[Row]:
    """TRL's DPOTrainer with its defaults, full training, the same groups."""
    for negatives in (1, 7):
        label = f"trl.{name}.k{negatives}"
        ours = fitting(lambda negatives=negatives: steps(shape, "full", negatives, device, quick))
        rival = fitting(lambda negatives=negatives: trl_steps(shape, negatives, device, quick))
        if ours is None or rival is None:
            yield Row(label, 0.0, "groups/s", "TRL", None, None, "does not fit in the device's memory")
            continue
        ratio = rival.seconds / ours.seconds
        rates = shape.groups / ours.seconds, shape.groups / rival.seconds
        yield Row(label, rates[0], "groups/s", "TRL DPOTrainer, defaults", rates[1], ratio, "full training, bfloat16")
        yield Row(f"{label}.memory", ours.gib, "GiB", "TRL", rival.gib, rival.gib / ours.gib, "max_memory_allocated")


def trl_steps(shape: Shape, negatives: int, device: torch.device, quick: bool) -> Taken:
    """Seconds of a step and memory of a DPOTrainer in a process of its own.

    Raises:
        torch.OutOfMemoryError: it does not fit.
    """
    count = QUICK_STEPS if quick else STEPS
    folder = Path(tempfile.mkdtemp(prefix="rosepo-benchmark-"))
    outputs = RunPaths(folder)
    try:
        shape.model(torch.device("cpu")).save_pretrained(outputs.sft)
        train_tokenizer(*synthetic.titles(TITLES), synthetic.SHAPE).save_pretrained(outputs.sft)
        prompts, completions = groups(shape.groups, negatives, shape.vocabulary)
        write_table(outputs, Groups(prompts, completions), [np.zeros(1 + negatives, np.float32)] * shape.groups)
        made = {"TRL": Side(trl_side.make, outputs, count, "bfloat16", trl_side.Setting(), device.type)}
        with sides(made):
            made["TRL"].turn()
            figures = made["TRL"].turn()
    except RuntimeError as error:
        if "OutOfMemoryError" in str(error):
            raise torch.OutOfMemoryError(str(error)) from error
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return Taken(figures["seconds"] / count, figures["gib"], 0, 0.0)
