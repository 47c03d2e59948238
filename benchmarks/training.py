"""How fast groups are trained on: rosepo against rivals, side by side, on this machine.

    python benchmarks/training.py [--only NAME]… [--quick] [--threads N] [--json FILE]

| row | what is measured | against | target |
|---|---|---|---|
| train.k1.live | whole training steps, one rejected title a group, groups/s | TRL's DPOTrainer, its defaults | 6x |
| train.k1.precomputed | the same | the same with precompute_ref_log_probs | 4x |
| train.k7.live | seven rejected titles | TRL's defaults on the seven pairs | 25x |
| train.*.bf16 | the same rows in bfloat16 | TRL in bfloat16 | as above |
| train.trajectory | eight groups of one user, K = 15, as one row, groups/s | a shared-prefix row a group | 4x |
| train.memory.k1, .k7 | highest memory of a whole training process, MiB | TRL's defaults | 2x |
| align.overhead | steps of the whole `align` stage, two workers, groups/s | a bare torch loop | 0.85x |
| scaling.workers.2 | two workers of one core each, groups/s | one such worker | |
| scaling.zero.1, .2, .3 | ZeRO stages, two workers, groups/s | ZeRO-0 | |

A Llama of 10.5 million parameters, prompts of 400 tokens, titles of 8 with EOS. TRL is in the extra `bench`; the time
of its precomputing is not counted, as that of rosepo's `pairs` stage is not. A ratio above 1 means that rosepo is
better. Each side is a process of its own; turns alternate, figures are medians of five (three with --quick; memory is
one peak, and align.overhead and scaling with --quick are one turn). Losses of the two sides are compared before
anything is timed.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
if __name__ == "__main__":  # before libraries are imported, here and in processes: what they print belongs to no table
    os.environ |= {"TQDM_DISABLE": "1", "TRANSFORMERS_VERBOSITY": "error", "PYTHONWARNINGS": "ignore"}
    os.environ |= {"DS_ACCELERATOR": "cpu", "HF_HUB_OFFLINE": "1"}

from benchmarks.command import Source, run

TARGETS = {
    "train.k1.live": 6.0,
    "train.k1.precomputed": 4.0,
    "train.k7.live": 25.0,
    "train.k1.live.bf16": 6.0,
    "train.k1.precomputed.bf16": 4.0,
    "train.k7.live.bf16": 25.0,
    "train.trajectory": 4.0,
    "train.memory.k1": 2.0,
    "train.memory.k7": 2.0,
    "align.overhead": 0.85,
}
"""The least ratio that each row should reach."""
SOURCES = {
    "train.k1.live": Source("benchmarks.dpo", "k1_live"),
    "train.k1.live.bf16": Source("benchmarks.dpo", "k1_live_bf16"),
    "train.k1.precomputed": Source("benchmarks.dpo", "k1_precomputed"),
    "train.k1.precomputed.bf16": Source("benchmarks.dpo", "k1_precomputed_bf16"),
    "train.k7.live": Source("benchmarks.dpo", "k7_live"),
    "train.k7.live.bf16": Source("benchmarks.dpo", "k7_live_bf16"),
    "train.trajectory": Source("benchmarks.trajectory", "trajectory"),
    "train.memory.k1": Source("benchmarks.memory", "k1"),
    "train.memory.k7": Source("benchmarks.memory", "k7"),
    "align.overhead": Source("benchmarks.overhead", "overhead"),
    "scaling.workers.2": Source("benchmarks.scaling", "workers"),
    "scaling.zero.1": Source("benchmarks.scaling", "zero"),
    "scaling.zero.2": Source("benchmarks.scaling", "zero"),
    "scaling.zero.3": Source("benchmarks.scaling", "zero"),
}
"""Every row, in the order in which they run."""

if __name__ == "__main__":
    sys.exit(run(__doc__, SOURCES, TARGETS))
