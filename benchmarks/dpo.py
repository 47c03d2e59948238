"""Rows `train.k1.live`, `train.k1.precomputed` and `train.k7.live`, and the same in bfloat16: whole training steps.

rosepo's side is `align` in one process, without Ray Train: groups read from their table and collated, forward, the
objective on the table's reference log-probabilities, backward, clipping and AdamW in DeepSpeed ZeRO-1, the metrics of
every step. It is timed from before the first step's data to after the last step. The rival is TRL's DPOTrainer on the
same weights, groups, learning rate and numbers of groups a step (benchmarks/trl_side.py says what is timed there).
Every step takes all groups, so both sides' losses can be compared step by step; they are before anything is timed.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import trl_side
from benchmarks.common import Pair, Row, rate_row
from benchmarks.groups_run import make_run, settings
from benchmarks.reference import PROMPT, TITLE
from benchmarks.sides import Side, Take, in_turns, peak_mib, sides
from benchmarks.trl_side import Setting
from rosepo.run.paths import RunPaths

GROUPS = {1: 4, 7: 2}
"""Groups a step, by rejected titles a group."""
STEPS, QUICK_STEPS = 2, 1
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.03}
"""Between the two sides' losses of a step. In bfloat16 TRL rounds policy and reference alike, while a table's reference
log-probabilities are float32."""


def k1_live(quick: bool) -> Row:
    """One rejected title, the reference in every step, as TRL does by default."""
    return _measure("train.k1.live", 1, "float32", Setting(), quick)


def k1_precomputed(quick: bool) -> Row:
    """One rejected title, the reference computed before."""
    return _measure("train.k1.precomputed", 1, "float32", Setting(precomputed=True), quick)


def k7_live(quick: bool) -> Row:
    """Seven rejected titles; TRL is given the seven pairs."""
    return _measure("train.k7.live", 7, "float32", Setting(), quick)


def k1_live_bf16(quick: bool) -> Row:
    """As `k1_live`."""
    return _measure("train.k1.live.bf16", 1, "bfloat16", Setting(), quick)


def k1_precomputed_bf16(quick: bool) -> Row:
    """As `k1_precomputed`."""
    return _measure("train.k1.precomputed.bf16", 1, "bfloat16", Setting(precomputed=True), quick)


def k7_live_bf16(quick: bool) -> Row:
    """As `k7_live`."""
    return _measure("train.k7.live.bf16", 7, "bfloat16", Setting(), quick)


def _measure(name: str, negatives: int, precision: str, rival: Setting, quick: bool) -> Row:
    """Raises ValueError where the losses of the two differ."""
    groups = GROUPS[negatives]
    steps = QUICK_STEPS if quick else STEPS
    with run_of(groups, negatives) as outputs:
        made = {
            "rosepo": Side(product, outputs, groups, steps, precision),
            "TRL": Side(trl_side.make, outputs, steps, precision, rival),
        }
        if not quick:
            lean = rival._replace(checkpointing=False)
            made["TRL, activations kept"] = Side(trl_side.make, outputs, steps, precision, lean)
        with sides(made):
            turns = in_turns(made, quick, lambda first: same_losses(name, first, TOLERANCE[precision]))
    seconds = {side: taken.median("seconds") for side, taken in turns.items()}
    note = (
        f"{groups} groups a step, {steps} steps a turn, prompts of {PROMPT} tokens, titles of {TITLE}, {precision}; "
        f"losses apart by at most {apart({side: taken.first for side, taken in turns.items()}):.0e}"
    )
    if not quick:
        note += (
            f"; {seconds['TRL, activations kept'] / seconds['rosepo']:.1f}x TRL without its activation checkpointing"
        )
    against = f"TRL DPOTrainer, {'precomputed' if rival.precomputed else 'defaults'}"
    return rate_row(name, "groups/s", against, groups * steps, Pair(seconds["rosepo"], seconds["TRL"]), note)


@contextmanager
def run_of(groups: int, negatives: int) -> Iterator[RunPaths]:
    """A run with so many groups, in a folder that goes with the body."""
    folder = Path(tempfile.mkdtemp(prefix="rosepo-benchmark-"))
    try:
        yield make_run(folder, groups, negatives)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def product(outputs: RunPaths, groups: int, steps: int, precision: str, **align: Any) -> Take:
    """`align` in this process; a turn is a whole training of `steps` steps on all groups."""
    from rosepo.training.align import align_in_process

    options = {"batch_size": groups, "micro_batch_size": groups, "epochs": steps, "log_every": 1}
    config = settings(**(options | {"precision": precision} | align))

    def take() -> dict[str, Any]:
        out = Path(tempfile.mkdtemp(prefix="rosepo-benchmark-aligned-"))
        seen: dict[int, float] = {}
        losses: list[float] = []

        def report(step: int, figures: dict[str, float]) -> None:
            seen[step] = time.perf_counter()
            if step:
                losses.append(figures["loss"])

        try:
            tokens = align_in_process(config, outputs, out, report=report)["tokens"]
        finally:
            shutil.rmtree(out, ignore_errors=True)
        return {"seconds": seen[steps] - seen[0], "losses": losses, "peak": peak_mib(), "tokens": tokens}

    return take


def apart(first: Mapping[str, dict[str, Any]]) -> float:
    """How far the losses of any side are from rosepo's, at most."""
    ours = first["rosepo"]["losses"]
    return max(
        abs(one - other) for figures in first.values() for one, other in zip(ours, figures["losses"], strict=True)
    )


def same_losses(name: str, first: Mapping[str, dict[str, Any]], tolerance: float) -> None:
    """Raises ValueError where a side's losses are not rosepo's."""
    if not apart(first) < tolerance:
        told = "; ".join(f"{side}: {figures['losses']}" for side, figures in first.items())
        raise ValueError(f"{name}: losses differ by {apart(first):.1e}, more than {tolerance}: {told}")
