"""Examples in which alignment changed the answer most, for a person to read."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rosepo.data.catalogue import Catalogue, ranked_items
from rosepo.evaluation.measured_examples import EXAMPLES_FILE, read_batches
from rosepo.evaluation.rankings import DEPTH, RANKINGS_FOLDER, read_rankings
from rosepo.metrics.ranking import ndcg
from rosepo.run.paths import RunPaths

SHOWN_HISTORY = 4
SHOWN_TITLES = 3


@dataclass(frozen=True)
class Case:
    """One example before (SFT) and after alignment; places count from 1, None beyond the kept ranking."""

    history: list[str]
    earlier: int
    truth: str
    before: list[str]
    after: list[str]
    place_before: int | None
    place_after: int | None


def changed_examples(paths: RunPaths, count: int = 3) -> dict[str, list[Case]]:
    """`helped` and `hurt`: `count` examples each, whose targets moved most in discounted gain; ties in table order."""
    catalogue = Catalogue.load(ranked_items(paths.examples, paths.evaluation))
    rankings = paths.evaluation / RANKINGS_FOLDER
    ranks_before, items_before = read_rankings(rankings / "sft.parquet")
    ranks_after, items_after = read_rankings(rankings / "aligned.parquet")
    gain = ndcg(ranks_after, DEPTH) - ndcg(ranks_before, DEPTH)
    chosen = {
        "helped": [int(row) for row in np.argsort(-gain, kind="stable")[:count] if gain[row] > 0],
        "hurt": [int(row) for row in np.argsort(gain, kind="stable")[:count] if gain[row] < 0],
    }
    wanted = {row for rows in chosen.values() for row in rows}
    cases: dict[int, Case] = {}
    start = 0
    for batch in read_batches(paths.evaluation / EXAMPLES_FILE):
        for row in wanted.intersection(range(start, start + len(batch.targets))):
            history = batch.histories[row - start]
            cases[row] = Case(
                history=_titles(catalogue, history[-SHOWN_HISTORY:]),
                earlier=max(len(history) - SHOWN_HISTORY, 0),
                truth=catalogue.titles[int(batch.targets[row - start])],
                before=_titles(catalogue, items_before[row, :SHOWN_TITLES]),
                after=_titles(catalogue, items_after[row, :SHOWN_TITLES]),
                place_before=_place(ranks_before[row]),
                place_after=_place(ranks_after[row]),
            )
        start += len(batch.targets)
    return {kind: [cases[row] for row in rows] for kind, rows in chosen.items()}


def _titles(catalogue: Catalogue, items: np.ndarray) -> list[str]:
    return [catalogue.titles[int(item)] for item in items if item >= 0]


def _place(rank: np.integer) -> int | None:
    return int(rank) + 1 if rank >= 0 else None
