"""A function in several processes that share a process group, as the workers of a training do."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def on_ranks(world: int, threads: int, function: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """What rank 0 returns of `function(rank, world, *arguments)`, called in `world` processes of `threads` threads."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_rank, args=(world, threads, folder, function, arguments), nprocs=world)
        found: dict[str, Any] = json.loads(Path(folder, "figures.json").read_text())
    return found


def _rank(
    rank: int,
    world: int,
    threads: int,
    folder: str,
    function: Callable[..., dict[str, Any]],
    arguments: tuple[Any, ...],
) -> None:
    torch.set_num_threads(threads)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    dist.init_process_group("gloo", store=dist.FileStore(f"{folder}/store", world), rank=rank, world_size=world)
    figures = function(rank, world, *arguments)
    if rank == 0:
        Path(folder, "figures.json").write_text(json.dumps(figures))
    dist.destroy_process_group()
