"""Rows `train.memory.k1` and `train.memory.k7`: highest resident memory of a whole training process.

The trainings of benchmarks/dpo.py with more groups a step, each in a fresh process with its libraries, for two steps.
TRL recomputes activations by default, so rosepo does too here (`activation_checkpointing`); the note has both without.
"""

from __future__ import annotations

from functools import partial

from benchmarks import trl_side
from benchmarks.common import Row
from benchmarks.dpo import product, run_of
from benchmarks.sides import Side, sides
from benchmarks.trl_side import MOST_PAIRS, Setting

GROUPS = {1: 8, 7: 4}
QUICK_GROUPS = {1: 8, 7: 2}
"""Groups a step, by rejected titles a group."""
STEPS = 2


def k1(quick: bool) -> Row:
    """One rejected title."""
    return _measure("train.memory.k1", 1, quick)


def k7(quick: bool) -> Row:
    """Seven rejected titles; TRL is given the seven pairs."""
    return _measure("train.memory.k7", 7, quick)


def _measure(name: str, negatives: int, quick: bool) -> Row:
    groups = (QUICK_GROUPS if quick else GROUPS)[negatives]
    with run_of(groups, negatives) as outputs:
        made = {
            "rosepo": Side(partial(product, activation_checkpointing=True), outputs, groups, STEPS, "float32"),
            "rosepo, kept": Side(product, outputs, groups, STEPS, "float32"),
            "TRL": Side(trl_side.make, outputs, STEPS, "float32", Setting()),
            "TRL, kept": Side(trl_side.make, outputs, STEPS, "float32", Setting(checkpointing=False)),
        }
        with sides(made):
            peak = {side: process.turn()["peak"] for side, process in made.items()}
    kept, rival_kept = peak["rosepo, kept"], peak["TRL, kept"]
    note = (
        f"{groups} groups a step, at most {MOST_PAIRS} pairs in a forward pass of TRL; without activation "
        f"checkpointing {kept:.0f} and {rival_kept:.0f} MiB, {rival_kept / kept:.2f}x"
    )
    return Row(name, peak["rosepo"], "MiB", "TRL DPOTrainer, defaults", peak["TRL"], peak["TRL"] / peak["rosepo"], note)
