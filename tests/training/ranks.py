"""Run a function in two processes that share a process group, as two training workers would."""

from __future__ import annotations

import gc
import multiprocessing
import multiprocessing.connection
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist


def two_ranks(function: Callable[..., None], *arguments: Any) -> None:
    """`forked_ranks` of two that must end well."""
    assert forked_ranks(2, function, *arguments) == [0, 0]


def forked_ranks(world: int, function: Callable[..., None], *arguments: Any) -> list[int]:
    """Call ``function(rank, *arguments)`` in `world` fresh processes that share a process group; their exit codes.

    Where one of them dies the others are ended. They are forked off a process that has imported all there is to import,
    so that one start takes a moment. What an error says is on their stderr.
    """
    os.environ["DS_ACCELERATOR"] = "cpu"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["deepspeed", "rosepo.training.align", "rosepo.training.sft", "tests.training.ranks"]
    )
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder) / "store")
        ranks = [
            context.Process(target=_forked, args=(rank, world, store, function, arguments)) for rank in range(world)
        ]
        for process in ranks:
            process.start()
        try:
            # Asked once a turn: one that ends between two questions would leave nothing to wait for, and no end of it.
            while running := [process.sentinel for process in ranks if process.exitcode is None]:
                multiprocessing.connection.wait(running)
                if any(process.exitcode for process in ranks):
                    _end(ranks, 10.0)
        finally:
            _end(ranks, 0.0)  # where a test is out of time, they would go on beside all that follow
        return [process.exitcode or 0 for process in ranks]


def _end(ranks: list[Any], seconds: float) -> None:
    for process in ranks:
        process.join(seconds)
        process.kill()
        process.join()


def _forked(rank: int, world: int, store: str, function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    gc.freeze()  # DeepSpeed collects garbage a dozen times an engine: not through all that has been imported
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    dist.init_process_group("gloo", store=dist.FileStore(store, world), rank=rank, world_size=world)
    function(rank, *arguments)
    dist.barrier()  # a rank that leaves while the other still talks to it may abort in gloo's threads
    dist.destroy_process_group()
