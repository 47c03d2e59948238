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

import argparse
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import Row, table, write_json

TARGETS = {
    "self_hard.beam": 5.0,
    "reference.k1": 2.0,
    "reference.k7": 5.0,
    "strategies.job": 0.6,
    "groups.10m.memory": 0.8,
    "oracle.epoch": 1.0,
}
"""The least ratio that each row should reach."""


class Source(NamedTuple):
    """Where a row comes from: a function of `quick` that returns it, or a list of rows with it."""

    module: str
    function: str

    def load(self) -> Callable[[bool], Row | list[Row]]:
        """The function; its module is imported only now."""
        found: Callable[[bool], Row | list[Row]] = getattr(importlib.import_module(self.module), self.function)
        return found


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


def chosen(only: list[str]) -> list[str]:
    """Names of the rows to run.

    Raises:
        KeyError: no row is called or begins with one of `only`.
    """
    for wanted in only:
        if not any(_is(name, wanted) for name in SOURCES):
            raise KeyError(wanted)
    return [name for name in SOURCES if not only or any(_is(name, wanted) for wanted in only)]


def _is(name: str, wanted: str) -> bool:
    return name == wanted or name.startswith(f"{wanted}.")


def measure(names: list[str], quick: bool) -> list[Row]:
    """The rows of these names; a function that gives several of them runs once."""
    rows: list[Row] = []
    for source in dict.fromkeys(SOURCES[name] for name in names):
        found = source.load()(quick)
        rows += [found] if isinstance(found, Row) else found
    return rows


def main() -> int:
    """Exit code 0; 2 where the command line asks for something that is not there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only",
        metavar="NAME",
        action="append",
        default=[],
        help="one row, or those that begin with NAME and a dot; may be given several times",
    )
    parser.add_argument("--quick", action="store_true", help="smaller inputs and three turns: a minute a row")
    parser.add_argument("--threads", type=int, metavar="N", help="threads of torch (default: its own choice)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows to FILE too")
    options = parser.parse_args()
    if options.threads is not None:
        if options.threads < 1:
            parser.error(f"--threads {options.threads}: at least one")
        torch.set_num_threads(options.threads)
    try:
        names = chosen(options.only)
    except KeyError as error:
        parser.error(f"--only {error.args[0]}: no such row; known: {', '.join(SOURCES)}")
    if options.json is not None and not options.json.parent.is_dir():
        parser.error(f"--json {options.json}: its folder does not exist")
    rows = measure(names, options.quick)
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    print(table(rows, TARGETS))
    if options.json is not None:
        write_json(options.json, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
