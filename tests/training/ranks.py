"""Run a function in two processes that share a process group, as two training workers would."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def two_ranks(function: Callable[..., None], *arguments: Any) -> None:
    """Call ``function(rank, *arguments)`` in two fresh processes and wait; an error in either is raised here."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_rank, args=(str(Path(folder) / "store"), function, arguments), nprocs=2)


def _rank(rank: int, store: str, function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    dist.init_process_group("gloo", store=dist.FileStore(store, 2), rank=rank, world_size=2)
    function(rank, *arguments)
    dist.destroy_process_group()
