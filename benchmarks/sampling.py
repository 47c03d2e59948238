"""How fast groups are made: rosepo against rivals, side by side, on this machine.

    python benchmarks/sampling.py [--only NAME]… [--quick] [--threads N] [--json FILE]

| row | what is measured | against | target |
|---|---|---|---|
| self_hard.beam | the search behind `self_hard`, prompts/s | Transformers `generate`, constrained by a trie | 5x |
| reference.k1 | reference log-probabilities of groups of one rejected title, pairs/s | one row a completion | 2x |
| reference.k7 | the same with seven rejected titles | one row a completion | 5x |
| strategies.core | rejected titles without a model, inside an actor, groups/s | a Python loop | 50,000/s |
| strategies.job | the whole Ray Data job, its start included, groups/s | actors × strategies.core | 0.6x |
| groups.10m.memory | resident memory while ten million groups are written, MiB | the run's first tenth | 0.8x |
| oracle.epoch | an epoch of SASRec, s (and HR@10, without --quick) | RecBole's SASRec (benchmarks/oracle.py) | 1x |

The log behind `strategies` and `groups` has a million users and a million items (40,000 users with --quick). A ratio
above 1 means that rosepo is better. All of it is float32 on the CPU; figures are medians of five runs of each,
taken in turns (three with --quick). --only takes a row or what several begin with: `reference` runs both.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.command import Source, run

TARGETS = {
    "self_hard.beam": 5.0,
    "reference.k1": 2.0,
    "reference.k7": 5.0,
    "strategies.job": 0.6,
    "groups.10m.memory": 0.8,
    "oracle.epoch": 1.0,
}
"""The least ratio that each row should reach."""
SOURCES = {
    "self_hard.beam": Source("benchmarks.beam", "beam"),
    "reference.k1": Source("benchmarks.reference", "k1"),
    "reference.k7": Source("benchmarks.reference", "k7"),
    "strategies.core": Source("benchmarks.strategies", "core"),
    "strategies.job": Source("benchmarks.strategies", "job"),
    "groups.10m.memory": Source("benchmarks.strategies", "memory"),
    "oracle.epoch": Source("benchmarks.oracle", "rows"),
}
"""Every row, in the order in which they run."""


if __name__ == "__main__":
    sys.exit(run(__doc__, SOURCES, TARGETS))
