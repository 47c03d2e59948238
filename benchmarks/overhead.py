"""Row `align.overhead`: the whole of `align` (Ray Data, Ray Train, DeepSpeed ZeRO-1, two workers) against a bare loop.

rosepo's figure is that of the metrics that a run leaves: rows a second of its steps, the intervals of the first steps
left out, the start-up too (it is in the note). The bare loop is torch alone over the same shared-prefix batches, made
beforehand: the model's log-probabilities, DPO, backward, clipping, AdamW, in one process with all cores, and once more
in two processes of one core each under DistributedDataParallel. The rival is the faster of the two.
"""

from __future__ import annotations

import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import Row
from benchmarks.dpo import run_of
from benchmarks.groups_run import BETA, LEARNING_RATE, settings, split_table
from benchmarks.ranks import on_ranks
from benchmarks.sides import Side, Take, in_turns, sides
from rosepo.run.paths import RunPaths

GROUPS, WORKERS = 8, 2
PARTS = 16
"""Files of the groups table, a group in each: every step reads of many, as it does of a real table."""
STEPS, QUICK_STEPS = 16, 8
SKIPPED = 4
"""First steps that count on no side: threads, allocators and the object store settle."""


def overhead(quick: bool) -> Row:
    """The row."""
    steps = QUICK_STEPS if quick else STEPS
    with run_of(PARTS, 1) as outputs:
        split_table(outputs, PARTS)
        made = {
            "rosepo": Side(product, outputs, steps),
            "one process": Side(bare, outputs, steps, 1),
            "two processes": Side(bare, outputs, steps, 2),
        }
        with sides(made):
            turns = in_turns(made, quick, warm_up=False, repeats=1 if quick else None)
    rate = {name: taken.median("rate") for name, taken in turns.items()}
    rival = max(("one process", "two processes"), key=lambda name: rate[name])
    note = (
        f"{GROUPS} groups a step of a table of {PARTS} parts, {steps - SKIPPED} steps a turn; bare loop in one process "
        f"{rate['one process']:.2f}, in two {rate['two processes']:.2f}; start and end of align "
        f"{turns['rosepo'].median('start'):.0f} s"
    )
    return Row(
        "align.overhead",
        rate["rosepo"],
        "groups/s",
        f"bare loop, {rival}",
        rate[rival],
        rate["rosepo"] / rate[rival],
        note,
    )


def product(outputs: RunPaths, steps: int) -> Take:
    """`align` on Ray; a turn is a whole stage."""
    from rosepo.config import RayConfig
    from rosepo.run.ray_session import ray_session
    from rosepo.training.align import align

    micro = GROUPS // WORKERS
    epochs = steps * GROUPS / PARTS
    config = settings(
        batch_size=GROUPS, micro_batch_size=micro, workers=WORKERS, zero_stage=1, epochs=epochs, log_every=2
    )

    def take() -> dict[str, Any]:
        out = Path(tempfile.mkdtemp(prefix="rosepo-benchmark-aligned-"))
        try:
            with ray_session(RayConfig()):
                started = time.monotonic()
                figures = align(config, outputs, out)
                seconds = time.monotonic() - started
            lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        finally:
            shutil.rmtree(out, ignore_errors=True)
        rates = [line["rows_per_second"] for line in lines if line["step"] > SKIPPED]
        return {"rate": statistics.median(rates), "start": seconds - figures["train_seconds"]}

    return take


def bare(outputs: RunPaths, steps: int, world: int) -> Take:
    """The loop that one would write by hand; a turn starts `world` processes and takes the median of their steps."""
    threads = max(1, torch.get_num_threads() // world)
    return lambda: {"rate": GROUPS / on_ranks(world, threads, bare_rank, outputs, steps)["seconds"]}


def bare_rank(rank: int, world: int, outputs: RunPaths, steps: int) -> dict[str, float]:
    """Median seconds a step."""
    from torch.nn.parallel import DistributedDataParallel

    from rosepo.lm.model.policy import load_policy
    from rosepo.lm.rows.batch import Batch
    from rosepo.lm.rows.logps import LogpsModel
    from rosepo.training.align import align_task
    from rosepo.training.feed.feed import micro_batches

    epochs = steps * GROUPS / PARTS
    plan = align_task(settings(batch_size=GROUPS, micro_batch_size=GROUPS // world, epochs=epochs), outputs).plan
    data = list(micro_batches(plan, rank, world))
    module: Any = LogpsModel(load_policy(outputs.sft, trainable=True)).train()
    module = module if world == 1 else DistributedDataParallel(module)
    optimizer = torch.optim.AdamW(module.parameters(), lr=LEARNING_RATE, fused=True)
    taken = []
    for arrays in data:
        started = time.perf_counter()
        policy = module(Batch.from_numpy(arrays))[0].view(len(arrays["ref_logps"]), -1)
        ratio = policy - torch.from_numpy(arrays["ref_logps"])
        loss = -torch.nn.functional.logsigmoid(BETA * (ratio[:, :1] - ratio[:, 1:])).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        float(loss.detach())
        taken.append(time.perf_counter() - started)
    return {"seconds": statistics.median(taken[SKIPPED:])}
