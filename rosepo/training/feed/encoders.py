"""From table rows to micro-batches: what the feeding actors run.

Kept apart from the tasks, so that an actor that only puts arrays together loads neither Transformers nor DeepSpeed.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rosepo.config import OWN_STRATEGY, STRATEGIES
from rosepo.data.item_columns import item_lists
from rosepo.data.prompts import PromptBuilder
from rosepo.lm.rows.collate import collate_numpy
from rosepo.lm.rows.prefix_sharing import Group, UserRow, user_rows
from rosepo.lm.rows.rows import Row, group_row, trajectory_rows
from rosepo.training.feed.micro_batching import bounded, shared_by_tokens, shared_out
from rosepo.training.feed.plan import Arrays
from rosepo.training.feed.trie_targets import TrieTargets
from rosepo.utils.errors import UserError

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
    "oracle_rest",
    "ref_logps",
)
USER_COLUMN = "user_id"
SHARES_COLUMN = "oracle_shares"
"""The oracle's distribution over the whole catalogue, by item index."""
_DRAWN = ("oracle_scores", "oracle_rest")


@dataclass(frozen=True)
class TrajectoryEncoder:
    """Rows of the trajectories table as micro-batches of trajectory rows."""

    builder: PromptBuilder
    pack_tokens: int | None = None
    most_tokens: int | None = None

    def __call__(self, rows: pa.Table, parts: int) -> list[Arrays]:
        made: list[Row] = []
        for items, n_targets in zip(item_lists(rows, "items"), rows["n_targets"].to_pylist(), strict=True):
            made += trajectory_rows(self.builder, items, n_targets)
        return collated(made, parts, self.pack_tokens, self.most_tokens)


def collated(
    rows: list[Row], parts: int, pack_tokens: int | None = None, most_tokens: int | None = None
) -> list[Arrays]:
    """Rows as micro-batches, see `Encoder`; units are completions."""
    batches = []
    shared = shared_out(rows, parts, pack_tokens)
    lengths = [len(row) for row in rows]
    for places in bounded(shared, lengths, most_tokens, pad_multiple=PAD_MULTIPLE, pack_tokens=pack_tokens):
        mine = [rows[place] for place in places]
        arrays = collate_numpy(mine, pad_multiple=PAD_MULTIPLE, pack_tokens=pack_tokens)
        batches.append(arrays | {"units": np.array(arrays["row_offsets"][-1], dtype=np.float64)})
    return batches


@dataclass(frozen=True)
class GroupEncoder:
    """Rows of the groups table as micro-batches: the arrays of a `Batch`, `units` (its groups), and for G groups of K
    pairs `ref_logps` and `oracle_scores` float32 [G, 1 + K], `epsilon` float32 and `strategy` int64 [G, K],
    `oracle_rest` float32 [G], each where its column is fed. Without `rejected_ids` groups are chosen titles alone.

    Strategies are numbered by their places in `strategy_labels`.

    Attributes:
        branchings: where given, completions of the oracle's whole distribution follow those of the groups: G (1 + K),
            then G, see `TrieTargets.add`; `entropy` float32 [G, 1 + K] is the least that each of the former and its
            group's root can cost together.
        most_tokens: of a micro-batch, see `bounded`.
    """

    pack_tokens: int | None = None
    branchings: TrieTargets | None = None
    most_tokens: int | None = None

    def __call__(self, rows: pa.Table, parts: int) -> list[Arrays]:
        table, shares = _lists(rows), _shares(rows)
        completions = _completions(table)
        made = [
            UserRow(group_row(np.array(prompt, np.int32), ids), [place])
            for place, (prompt, ids) in enumerate(zip(table["prompt_ids"], completions))
        ]
        lengths = [len(found.row) for found in made]
        shared = shared_out([found.row for found in made], parts, self.pack_tokens)
        return [
            _micro_batch([made[place] for place in places], table, shares, self.branchings, self.pack_tokens)
            for places in bounded(shared, lengths, self.most_tokens, pack_tokens=self.pack_tokens)
        ]


@dataclass(frozen=True)
class UserEncoder:
    """Rows of the groups table, all of a user together, as micro-batches of trajectory rows.

    The arrays are those of `GroupEncoder`.

    Attributes:
        row_tokens: tokens of a row at most, see `user_rows`.
        branchings: as in `GroupEncoder`.
        most_tokens: of a micro-batch, see `bounded`.
    """

    row_tokens: int
    pack_tokens: int | None = None
    branchings: TrieTargets | None = None
    most_tokens: int | None = None

    def __call__(self, rows: pa.Table, parts: int) -> list[Arrays]:
        table, shares = _lists(rows), _shares(rows)
        groups = [
            Group(np.array(prompt, np.int32), [np.array(ids, np.int32) for ids in titles])
            for prompt, titles in zip(table["prompt_ids"], _completions(table), strict=True)
        ]
        made: list[UserRow] = []
        for start, stop in itertools.pairwise(run_bounds(rows[USER_COLUMN])):
            for found in user_rows(groups[start:stop], self.row_tokens):
                made.append(replace(found, groups=[start + place for place in found.groups]))
        lengths = [len(found.row) for found in made]
        shared = self._shared_out([found.row for found in made], parts)
        return [
            _micro_batch([made[place] for place in places], table, shares, self.branchings, self.pack_tokens)
            for places in bounded(shared, lengths, self.most_tokens, pack_tokens=self.pack_tokens)
        ]

    def _shared_out(self, rows: list[Row], parts: int) -> list[list[int]]:
        if self.pack_tokens is not None:
            return shared_out(rows, parts, self.pack_tokens)
        return shared_by_tokens([len(row) for row in rows], parts)


def run_bounds(column: pa.ChunkedArray) -> list[int]:
    """Where runs of equal values begin in a column of n ≥ 1 values, and n."""
    values = column.combine_chunks()
    changes = np.flatnonzero(pc.not_equal(values[1:], values[:-1]).to_numpy(zero_copy_only=False)) + 1
    return [0, *changes.tolist(), len(values)]


def _lists(rows: pa.Table) -> dict[str, list[Any]]:
    # Losses are fed what they read: one that knows no reference no `ref_logps`, `sft` no rejected titles.
    return {name: rows[name].to_pylist() for name in GROUP_COLUMNS if name in rows.column_names}


def _completions(table: dict[str, list[Any]]) -> list[list[Any]]:
    """The titles of every group, the chosen one first. Raises UserError where groups have more than one size."""
    if "rejected_ids" not in table:
        return [[chosen] for chosen in table["chosen_ids"]]
    completions = [[chosen, *rejected] for chosen, rejected in zip(table["chosen_ids"], table["rejected_ids"])]
    one_size({len(group) - 1 for group in completions})
    return completions


def _shares(rows: pa.Table) -> np.ndarray | None:
    """The oracle's shares of every title, float16 [n, n_items], where their column is fed."""
    if SHARES_COLUMN not in rows.column_names:
        return None
    shares: np.ndarray = rows[SHARES_COLUMN].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return shares.reshape(len(rows), -1)


def _micro_batch(
    made: list[UserRow],
    table: dict[str, list[Any]],
    shares: np.ndarray | None,
    branchings: TrieTargets | None,
    pack_tokens: int | None,
) -> Arrays:
    """The arrays of some rows: completions of groups first, then those of branchings."""
    beside = _beside(table, [place for found in made for place in found.groups])
    if branchings is None:
        return collate_numpy([found.row for found in made], pack_tokens=pack_tokens) | beside
    assert shares is not None
    rows, kinds, entropies = [], [], []
    for found in made:
        n, size = len(found.groups), found.row.n_completions // len(found.groups)
        scores, rest = (np.array([table[name][place] for place in found.groups]) for name in _DRAWN)
        row, entropy = branchings.add(found.row, size, scores, rest, shares[found.groups])
        rows.append(row)
        kinds.append(np.repeat([0, 1, 2], [n * size, n * size, n]))
        entropies.append(entropy[: n * size].reshape(n, size) + entropy[n * size :, None])
    arrays = collate_numpy(rows, pack_tokens=pack_tokens) | beside
    order = np.argsort(np.concatenate(kinds), kind="stable")
    arrays["completion"] = np.argsort(order).astype(np.int32)[arrays["completion"]]
    return arrays | {"entropy": np.concatenate(entropies)}


def _beside(table: dict[str, list[Any]], places: list[int]) -> Arrays:
    """What the groups at `places` have beside their tokens, and their number."""
    arrays: Arrays = {"units": np.array(len(places), dtype=np.float64)}
    for name in ("ref_logps", "oracle_scores", "oracle_rest", "epsilon"):
        if name in table:
            arrays[name] = np.array([table[name][place] for place in places], dtype=np.float32)
    if "strategy" in table:
        codes = {label: code for code, label in enumerate(strategy_labels())}
        found = [[codes.get(name, codes[OWN_STRATEGY]) for name in table["strategy"][place]] for place in places]
        arrays["strategy"] = np.array(found, dtype=np.int64)
    return arrays


def one_size(sizes: set[int]) -> int:
    """The one number of rejected titles, K, among those of some groups. Raises UserError where there are more."""
    if len(sizes) > 1:
        raise UserError(
            f"the groups table mixes groups of {min(sizes)} and {max(sizes)} rejected titles: make it again"
        )
    return next(iter(sizes))


def strategy_labels() -> tuple[str, ...]:
    """What figures call the strategies: by their names, and those by import path by one name together."""
    return (*STRATEGIES, OWN_STRATEGY)
