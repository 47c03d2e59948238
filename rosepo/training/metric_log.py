"""Figures of training: sums and counts that are added over ranks before any division, and the log they go to."""

from __future__ import annotations

import json
import os
import resource
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from rosepo.lm.rows.partitioned import host_group

METRICS_FILE = "metrics.jsonl"
EVENTS_FOLDER = "tensorboard"

Sums = dict[str, tuple[float | Tensor, float | Tensor]]
"""Name to (sum, count); a mean over ranks is the ratio of the added parts, never a mean of means."""


class Averages:
    """Running sums and counts by name, the same names on every rank; what comes in tensors stays on their device until
    it is asked for, so that adding waits for none."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names
        self._parts = np.zeros((len(names), 2))
        self._places = {name: place for place, name in enumerate(names)}
        self._on_device: dict[tuple[int, ...], Tensor] = {}
        """Sums of tensors that came together, float64 [n], by their places in the flattened parts."""

    def add(self, sums: Sums) -> None:
        """Count values in. Raises KeyError for an unknown name."""
        tensors: dict[int, Tensor] = {}
        for name, pair in sums.items():
            for side, part in enumerate(pair):
                if isinstance(part, Tensor):
                    tensors[2 * self._places[name] + side] = part.detach()
                else:
                    self._parts[self._places[name], side] += part
        if tensors:
            places, added = tuple(tensors), torch.stack([part.double() for part in tensors.values()])
            known = self._on_device.get(places)
            self._on_device[places] = added if known is None else known + added

    @property
    def parts(self) -> Tensor:
        """What this rank has counted since `collect`: float64 [names, 2], a copy."""
        for places, added in self._on_device.items():
            self._parts.reshape(-1)[list(places)] += added.cpu().numpy()
        self._on_device.clear()
        return torch.from_numpy(self._parts.copy())

    def restore(self, parts: Tensor) -> None:
        """Go on from what `parts` gave."""
        self._on_device.clear()
        self._parts[:] = parts.numpy()

    def collect(self) -> dict[str, tuple[float, float]]:
        """(sum, count) over all ranks by name, then start again. Every rank must call it."""
        parts = all_sum(self.parts).tolist()
        self._parts[:] = 0.0
        return {name: (total, count) for name, (total, count) in zip(self.names, parts, strict=True)}


def means(parts: dict[str, tuple[float, float]]) -> dict[str, float]:
    """Sum over count by name; names without a count are left out."""
    return {name: total / count for name, (total, count) in parts.items() if count > 0}


def all_sum(values: Tensor) -> Tensor:
    """`values` added over all ranks, on the CPU; every rank must call it."""
    added = values.detach().to("cpu", copy=True)
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(added, group=host_group())
    return added


def all_max(value: float) -> float:
    """The largest of all ranks' values; every rank must call it."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return value
    found = torch.tensor([value], dtype=torch.float64)
    dist.all_reduce(found, op=dist.ReduceOp.MAX, group=host_group())
    return float(found.numpy()[0])


def agreed(units: float, parts: int) -> tuple[float, int]:
    """Units of all ranks together, and the most parts that one of them has; every rank must call it."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return units, parts
    found = torch.zeros(1 + dist.get_world_size(), dtype=torch.float64)
    found[0], found[1 + dist.get_rank()] = units, parts
    total, *counts = all_sum(found).tolist()
    return total, int(max(counts))


def peak_memory(device: torch.device) -> float:
    """MiB that this process has taken at most: allocated on a GPU, otherwise resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 1 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


class MetricLog:
    """JSON Lines in `metrics.jsonl` and TensorBoard events, side by side in a stage's folder.

    Args:
        folder: of the stage.
        step: what an earlier run logged up to here stays; 0 begins anew.
    """

    def __init__(self, folder: Path, step: int = 0) -> None:
        from tensorboardX import SummaryWriter

        folder.mkdir(parents=True, exist_ok=True)
        cut_log(folder / METRICS_FILE, step)
        if step == 0:
            shutil.rmtree(folder / EVENTS_FOLDER, ignore_errors=True)
        self._file = (folder / METRICS_FILE).open("a", encoding="utf-8")
        purge = {"purge_step": step + 1} if step else {}
        self._events = SummaryWriter(str(folder / EVENTS_FOLDER), write_to_disk=True, **purge)

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """One line, flushed: a reader follows it while training runs."""
        self._file.write(json.dumps({"step": step, **{name: _short(value) for name, value in figures.items()}}) + "\n")
        self._file.flush()
        for name, value in figures.items():
            self._events.add_scalar(name, float(value), step)

    def __enter__(self) -> MetricLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._events.close()
        self._file.close()


def cut_log(path: Path, step: int) -> None:
    """Take away the lines after a step, and a last one that is not whole; all of them for step 0."""
    if not path.exists():
        return
    kept = 0
    with path.open("rb") as file:
        for line in file if step else ():
            if not line.endswith(b"\n") or json.loads(line)["step"] > step:
                break
            kept += len(line)
    os.truncate(path, kept)


def _short(value: float) -> float:
    return float(f"{float(value):.6g}")
