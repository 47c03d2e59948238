"""The command line that the programs of this folder share: which rows to run, at what size, and where to write them."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.common import Row, table, write_json


class Source(NamedTuple):
    """Where a row comes from: a function of `quick` that returns it, or a list of rows with it."""

    module: str
    function: str

    def load(self) -> Callable[[bool], Row | list[Row]]:
        """The function; its module is imported only now."""
        found: Callable[[bool], Row | list[Row]] = getattr(importlib.import_module(self.module), self.function)
        return found


Sources = Mapping[str, Source]
"""Every row of a program, in the order in which they run."""


def chosen(sources: Sources, only: list[str]) -> list[str]:
    """Names of the rows to run: for each of `only` the row of that name, or else those that begin with it and a dot.

    Raises:
        KeyError: no row is called or begins with one of `only`.
    """
    found: set[str] = set()
    for wanted in only:
        mine = {wanted} & set(sources) or {name for name in sources if name.startswith(f"{wanted}.")}
        if not mine:
            raise KeyError(wanted)
        found |= mine
    return [name for name in sources if not only or name in found]


def measure(sources: Sources, names: list[str], quick: bool) -> list[Row]:
    """The rows of these names; a function that gives several of them runs once."""
    rows: list[Row] = []
    for source in dict.fromkeys(sources[name] for name in names):
        found = source.load()(quick)
        rows += [found] if isinstance(found, Row) else found
    return rows


def run(description: str | None, sources: Sources, targets: Mapping[str, float]) -> int:
    """The program around `sources`: exit code 0; 2 where the command line asks for something that is not there."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only",
        metavar="NAME",
        action="append",
        default=[],
        help="the row NAME, or those that begin with NAME and a dot; may be given several times",
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
        names = chosen(sources, options.only)
    except KeyError as error:
        parser.error(f"--only {error.args[0]}: no such row; known: {', '.join(sources)}")
    if options.json is not None and not options.json.parent.is_dir():
        parser.error(f"--json {options.json}: its folder does not exist")
    rows = measure(sources, names, options.quick)
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    print(table(rows, targets))
    if options.json is not None:
        write_json(options.json, rows)
    return 0
