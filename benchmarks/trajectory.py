"""Row `train.trajectory`: eight groups of one user as one trajectory row, against the same groups as rows of their own.

The user's prompts are prefixes of one another, eight tokens (a title) apart, the longest of 400 tokens; every group has
its chosen title and fifteen rejected ones. Both sides are `align` in one process, as in benchmarks/dpo.py, and see the
same losses. The note also has the ratio of the tokens that the two put through the model, and the speed
with titles of three tokens, about what a tokenizer trained on the catalogue makes of them.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import dpo, synthetic
from benchmarks.common import Pair, Row, rate_row
from benchmarks.dpo import same_losses
from benchmarks.groups_run import Groups, write_groups, write_model
from benchmarks.reference import PROMPT, TITLE
from benchmarks.sides import Side, Take, Turns, in_turns, sides
from rosepo.lm.model.scratch import EOS, SPECIAL_TOKENS
from rosepo.run.paths import RunPaths

BOUNDARIES, NEGATIVES = 8, 15
SHORT_TITLE = 3
ROW_TOKENS = 4096
STEPS, QUICK_STEPS = 3, 1
TOLERANCE = 1e-3


def trajectory(quick: bool) -> Row:
    """The row."""
    note, turns = "", {}
    for title in (TITLE,) if quick else (SHORT_TITLE, TITLE):
        turns = _measure(title, quick)
        speedup = turns["groups"].median("seconds") / turns["rosepo"].median("seconds")
        tokens = turns["groups"].first["tokens"] / turns["rosepo"].first["tokens"]
        note = f"titles of {title} tokens: {speedup:.1f}x, {tokens:.1f}x fewer tokens; {note}"
    steps = QUICK_STEPS if quick else STEPS
    pair = Pair(turns["rosepo"].median("seconds"), turns["groups"].median("seconds"))
    note += f"{BOUNDARIES} boundaries, K = {NEGATIVES}, prompts up to {PROMPT} tokens"
    return rate_row("train.trajectory", "groups/s", "one shared-prefix row a group", BOUNDARIES * steps, pair, note)


def _measure(title: int, quick: bool) -> dict[str, Turns]:
    """Raises ValueError where the losses of the two differ."""
    root = Path(tempfile.mkdtemp(prefix="rosepo-benchmark-"))
    outputs = RunPaths(root)
    steps = QUICK_STEPS if quick else STEPS
    try:
        write_model(outputs)
        write_groups(outputs, prefixes(PROMPT, title, synthetic.SHAPE.vocab_size), users=[0] * BOUNDARIES)
        made = {name: Side(product, outputs, steps, name == "rosepo") for name in ("rosepo", "groups")}
        with sides(made):
            return in_turns(made, quick, lambda first: same_losses("train.trajectory", first, TOLERANCE))
    finally:
        shutil.rmtree(root, ignore_errors=True)


def prefixes(longest: int, title: int, vocabulary: int) -> Groups:
    """A user's groups: prompts `title` tokens apart, the longest of `longest`, each chosen title the next prompt's end.

    As in a prompt that the history ends, the separator after a title is its last token, where a completion has EOS.
    """
    random, first = np.random.default_rng(0), len(SPECIAL_TOKENS)
    end = SPECIAL_TOKENS.index(EOS)
    walk = random.integers(first, vocabulary, longest + title, dtype=np.int32)
    lengths = [longest - title * back for back in reversed(range(BOUNDARIES))]
    completions = []
    for length in lengths:
        rejected = random.integers(first, vocabulary, (NEGATIVES, title), dtype=np.int32)
        titles = np.concatenate([walk[None, length : length + title], rejected])
        titles[:, -1] = end
        completions.append(list(titles))
    return Groups([walk[:length] for length in lengths], completions)


def product(outputs: RunPaths, steps: int, together: bool) -> Take:
    """`align` in this process on all groups at once, as a trajectory row or as rows of their own."""
    if together:
        whole: dict[str, Any] = {"rows": "trajectory", "batch_size": 1, "micro_batch_size": 1, "row_tokens": ROW_TOKENS}
        return dpo.product(outputs, BOUNDARIES, steps, "float32", **whole)
    return dpo.product(outputs, BOUNDARIES, steps, "float32")
