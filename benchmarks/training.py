"""How fast groups are trained on: rosepo against rivals, side by side, on this machine.

python benchmarks/training.py [--only NAME]… [--quick] [--threads N] [--json FILE]
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
# Before the libraries are imported, here and in every process that is started: what they print belongs to no table.
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

if __name__ == "__main__":
    sys.exit(run(__doc__, SOURCES, TARGETS))
