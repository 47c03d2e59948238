"""From table rows to micro-batches: what the feeding actors run.

Kept apart from the tasks, so that an actor that only puts arrays together loads neither Transformers nor DeepSpeed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rosepo.config import STRATEGIES
from rosepo.data.catalogue import Catalogue
from rosepo.data.prompts import PromptBuilder
from rosepo.errors import UserError
from rosepo.training.collate import collate_numpy
from rosepo.training.feed import Arrays
from rosepo.training.rows import Row, group_row, trajectory_rows

PAD_MULTIPLE = 8
"""Trajectories of a small catalogue are a few dozen tokens: half of a step would be padding at larger sizes."""
GROUP_COLUMNS = (
    "example_id",
    "prompt_ids",
    "chosen_ids",
    "rejected_ids",
    "strategy",
    "epsilon",
    "oracle_scores",
    "ref_logps",
)


@dataclass(frozen=True)
class TrajectoryEncoder:
    """Rows of the trajectories table as micro-batches of trajectory rows."""

    builder: PromptBuilder
    catalogue: Catalogue
    pack_tokens: int | None = None

    def __call__(self, rows: pa.Table, parts: int) -> list[Arrays]:
        made: list[Row] = []
        items = rows["items"].combine_chunks()
        flat = self.catalogue.index(items.flatten().to_numpy(zero_copy_only=False))
        ends = np.cumsum(pc.list_value_length(items).to_numpy(zero_copy_only=False))
        for start, end, n_targets in zip([0, *ends[:-1]], ends, rows["n_targets"].to_pylist()):
            made += trajectory_rows(self.builder, flat[start:end], n_targets)
        return collated(made, parts, self.pack_tokens)


def collated(rows: list[Row], parts: int, pack_tokens: int | None = None) -> list[Arrays]:
    """Rows as `parts` micro-batches, empty ones where there are too few; units are completions."""
    batches: list[Arrays] = [{} for _ in range(parts)]
    for arrays, places in zip(batches, shared_out(rows, parts, pack_tokens), strict=True):
        if places:
            mine = [rows[place] for place in places]
            arrays |= collate_numpy(mine, pad_multiple=PAD_MULTIPLE, pack_tokens=pack_tokens)
            arrays["units"] = np.array(arrays["row_offsets"][-1], dtype=np.float64)
    return batches


@dataclass(frozen=True)
class GroupEncoder:
    """Rows of the groups table as micro-batches: the arrays of a `Batch`, `units` (its groups), and for G groups of K
    pairs `ref_logps` (where fed) and `oracle_scores` float32 [G, 1 + K], `epsilon` float32 and `strategy` int64 [G, K].

    Strategies are numbered as in `config.STRATEGIES`, those by import path all by the number after them.
    """

    pack_tokens: int | None = None
    columns: tuple[str, ...] = GROUP_COLUMNS
    """Those of the table that are fed: all, or without `ref_logps`."""

    def __call__(self, rows: pa.Table, parts: int) -> list[Arrays]:
        table = {name: rows[name].to_pylist() for name in self.columns}
        completions = [[chosen, *rejected] for chosen, rejected in zip(table["chosen_ids"], table["rejected_ids"])]
        one_size({len(group) - 1 for group in completions})
        made = [group_row(np.array(prompt, np.int32), ids) for prompt, ids in zip(table["prompt_ids"], completions)]
        batches: list[Arrays] = [{} for _ in range(parts)]
        for arrays, places in zip(batches, shared_out(made, parts, self.pack_tokens), strict=True):
            if places:
                arrays |= collate_numpy([made[place] for place in places], pack_tokens=self.pack_tokens)
                arrays["units"] = np.array(len(places), dtype=np.float64)
                for name in ("ref_logps", "oracle_scores", "epsilon"):
                    if name in table:
                        arrays[name] = np.array([table[name][place] for place in places], dtype=np.float32)
                codes = [[_code(name) for name in table["strategy"][place]] for place in places]
                arrays["strategy"] = np.array(codes, dtype=np.int64)
        return batches


def one_size(sizes: set[int]) -> int:
    """The one number of rejected titles, K, among those of some groups. Raises UserError where there are more."""
    if len(sizes) > 1:
        raise UserError(
            f"the groups table mixes groups of {min(sizes)} and {max(sizes)} rejected titles: make it again"
        )
    return next(iter(sizes))


def shared_out(rows: Sequence[Row], parts: int, pack_tokens: int | None = None) -> list[list[int]]:
    """Places of the rows in `parts` lists: of rows of like length, so that little of a micro-batch is padding, or,
    where rows are packed, with like numbers of tokens.

    The gradient of a step is a sum over its rows, so how they are put together changes nothing but speed.
    """
    order = np.argsort([len(row) for row in rows], kind="stable")
    if pack_tokens is not None:
        return [order[part::parts].tolist() for part in range(parts)]
    return [part.tolist() for part in np.array_split(order, parts)]


def _code(strategy: str) -> int:
    return STRATEGIES.index(strategy) if strategy in STRATEGIES else len(STRATEGIES)
