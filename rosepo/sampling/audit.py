"""`rosepo check --groups`: what every groups table promises, looked at again, whoever wrote it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from scipy.stats import chisquare

from rosepo.data.candidates import target_slots
from rosepo.data.catalogue import ITEMS_FILE, Catalogue
from rosepo.data.item_columns import flat_items, item_lists, item_matrix, items_of
from rosepo.data.prompts import PromptBuilder
from rosepo.data.seen import COLUMNS as EXAMPLE_COLUMNS
from rosepo.data.seen import example_files, read_split, with_seen
from rosepo.utils.errors import UserError
from rosepo.utils.log_shares import from_codes

TITLES = ("example_id", "chosen_item", "rejected_items", "strategy")
SCORES = ("prompt_ids", "chosen_ids", "rejected_ids", "epsilon", "oracle_scores", "ref_logps")
"""What a table has beside its titles unless it was made with pairs.score=false."""
SHARES = "oracle_shares"
"""And with `pairs.oracle_whole`, the oracle's distribution over the whole catalogue."""
UNLIKELY = 1e-6
"""Chance under which the slots of targets in candidate lists are not taken for random."""


def audit_groups(groups: Path, examples: Path, builder: PromptBuilder | None = None) -> dict[str, Any]:
    """Go through a groups table, a file at a time, beside the examples that it was made from, in the same order.

    Held: the chosen item is the example's target; K rejected items in every group, in the catalogue, distinct, never
    the target, never seen before it; every group once. Where groups carry scores: epsilon finite and in [0, 1/2);
    scores and reference log-probabilities finite, 1 + K each; no two titles of a group with the same tokens; the
    oracle's distribution, where it is kept, one over what can be drawn.

    Args:
        groups: the table.
        examples: what it was made from.
        builder: the policy's prompts; where given, every prompt and title must have the tokens that the evaluation
            decodes, a long history without its oldest items.

    Returns:
        groups, pairs, negatives (K), epsilon (mean by strategy), prompts_cut (None where no tokens were compared).

    Raises:
        UserError: the first promise that is broken, naming file and example; no groups, or missing columns.
    """
    files = sorted(groups.glob("part-*.parquet"))
    if not files:
        raise UserError(f"{groups} holds no groups (part-*.parquet): run `rosepo pairs` first")
    n_items = len(Catalogue.load(examples / ITEMS_FILE))
    extra = ("candidates",) if builder is not None and builder.lists_candidates else ()
    sources = read_split(examples, "train", extra=extra)
    source = next(sources)
    sums: dict[str, np.ndarray] = {}
    negatives, count, pairs, cut = None, 0, 0, None
    for path in files:
        table = pq.read_table(path, columns=_columns(path))
        if not len(table):
            raise UserError(f"{path} holds no group: it is not a part of a finished table")
        while (rows := pc.index_in(table["example_id"], source["example_id"].combine_chunks())).null_count:
            found = next(sources, None)
            if found is None:
                name = table["example_id"].filter(pc.is_null(rows))[0].as_py()
                raise UserError(f"{path}: {name} is no training example of {examples}, or stands out of order")
            source = pa.concat_tables([source, found])
        own = source.take(rows)
        negatives = _check_titles(path, table, own, n_items, negatives)
        if SCORES[0] in table.column_names:
            _check_scores(path, table, negatives)
            if SHARES in table.column_names:
                _check_shares(path, table, own, n_items)
            if builder is not None:
                cut = (cut or 0) + _check_tokens(path, table, own, builder)
        source = source.slice(pc.max(rows).as_py() + 1)
        count, pairs = count + len(table), pairs + len(table) * negatives
        if "epsilon" in table.column_names:
            values, strategies = _flat(table["epsilon"]).astype(np.float64), _flat(table["strategy"])
            for name in np.unique(strategies.astype(str)):
                here = values[strategies == name]
                sums[name] = sums.get(name, 0) + np.array([here.sum(), len(here)])
    means = {name: float(total / n) for name, (total, n) in sorted(sums.items())}
    return {"groups": count, "pairs": pairs, "negatives": negatives, "epsilon": means, "prompts_cut": cut}


def audit_candidates(examples: Path) -> dict[str, Any] | None:
    """Look at the candidate lists of an examples table, all splits: does the place of the target tell which it is?

    Returns:
        lists, candidates (their length), probe: the share of lists that a rule hits which always takes the slot where
        most targets stand; None where the table has no lists.

    Raises:
        UserError: a list without its target, with an item twice, or with what the user had chosen before; or slots of
            the targets that no even draw gives (chi-square test, p < `UNLIKELY`).
    """
    counts: np.ndarray | None = None
    for path in example_files(examples):
        if "candidates" not in pq.read_schema(path).names:
            return None
        table = with_seen(pq.read_table(path, columns=[*EXAMPLE_COLUMNS, "candidates"], partitioning=None), path)
        sizes = pc.list_value_length(table["candidates"]).to_numpy()
        if len(set(sizes.tolist())) > 1:
            raise UserError(f"{path} has candidate lists of {sizes.min()} to {sizes.max()} items: make it again")
        is_target = target_slots(table)
        lists = item_matrix(table, "candidates")
        refuse = _refuser(path, table["example_id"].to_pylist())
        ordered = np.sort(lists, axis=1)
        refuse((ordered[:, 1:] == ordered[:, :-1]).any(axis=1), "has a candidate twice")
        refuse(~is_target.any(axis=1), "has candidates without its target")
        seen = zip(lists.tolist(), table["seen"].to_pylist())
        refuse(np.array([not set(row).isdisjoint(past) for row, past in seen]), "has candidates chosen before")
        found = is_target.sum(axis=0)
        counts = found if counts is None else counts + found
    assert counts is not None
    chance = float(chisquare(counts).pvalue)
    if chance < UNLIKELY:
        raise UserError(
            f"{examples}: targets stand in slot {int(counts.argmax())} of their candidates {counts.max()} times out of "
            f"{counts.sum()}, which no even draw gives (p = {chance:.1e}): a model could find them without the user"
        )
    return {"lists": int(counts.sum()), "candidates": len(counts), "probe": float(counts.max() / counts.sum())}


def _columns(path: Path) -> list[str]:
    """Those of a groups file."""
    names = pq.read_schema(path).names
    wanted = [*TITLES, *(SCORES if set(SCORES) & set(names) else ()), *([SHARES] if SHARES in names else ())]
    missing = [name for name in wanted if name not in names]
    if missing:
        raise UserError(f"{path} has no column '{missing[0]}': it is no groups table")
    return wanted


def _refuser(path: Path, ids: list[str]) -> Callable[[Any, str], None]:
    """Raises the error about the first example that is marked."""

    def refuse(wrong: Any, what: str) -> None:
        if wrong.any():
            raise UserError(f"{path}: example {ids[int(np.argmax(wrong))]} {what}")

    return refuse


def _check_titles(path: Path, table: pa.Table, source: pa.Table, n_items: int, negatives: int | None) -> int:
    """Check the titles of one file against the examples; returns K."""
    ids = table["example_id"].to_pylist()
    refuse = _refuser(path, ids)
    _, first = np.unique(np.array(ids, dtype=object).astype(str), return_index=True)
    refuse(~np.isin(np.arange(len(ids)), first), "stands there twice")
    for name in ("rejected_items", "strategy"):
        sizes = pc.list_value_length(table[name]).to_numpy()
        negatives = int(sizes[0]) if negatives is None else negatives
        refuse(sizes != negatives, f"has {name} for another number of rejected titles than {negatives}")
    assert negatives is not None
    chosen = items_of(table, "chosen_item")
    refuse(chosen != items_of(source, "target"), "has another chosen title than the example's target")
    rejected = item_matrix(table, "rejected_items")
    outside = ((rejected < 0) | (rejected >= n_items)).any(axis=1)
    refuse(outside, f"rejects an item that is none of the {n_items:,} in the catalogue")
    ordered = np.sort(rejected, axis=1)
    refuse(np.any(ordered[:, 1:] == ordered[:, :-1], axis=1), "rejects one title twice")
    refuse(np.any(rejected == chosen[:, None], axis=1), "rejects its chosen title")
    keys = np.arange(len(ids))[:, None] * n_items
    seen, offsets = flat_items(source, "seen")
    known = np.repeat(keys[:, 0], np.diff(offsets)) + seen
    refuse(np.isin(keys + rejected, known).any(axis=1), "rejects a title that the user had chosen before")
    return negatives


def _check_scores(path: Path, table: pa.Table, negatives: int) -> None:
    """Check what one file's groups carry beside their titles."""
    refuse = _refuser(path, table["example_id"].to_pylist())
    for name, extra in (("epsilon", 0), ("oracle_scores", 1), ("ref_logps", 1)):
        sizes = pc.list_value_length(table[name]).to_numpy() - extra
        refuse(sizes != negatives, f"has {name} for another number of rejected titles than {negatives}")
    epsilon = np.asarray(_flat(table["epsilon"]), dtype=np.float64).reshape(len(table), negatives)
    refuse(~((epsilon >= 0) & (epsilon < 0.5)).all(axis=1), "has an epsilon outside [0, 1/2)")
    for name in ("oracle_scores", "ref_logps"):
        values = np.asarray(_flat(table[name]), dtype=np.float64).reshape(len(table), negatives + 1)
        refuse(~np.isfinite(values).all(axis=1), f"has {name} that are not finite")
    refuse(_alike(table), "has two titles of the same tokens")


def _check_shares(path: Path, table: pa.Table, source: pa.Table, n_items: int) -> None:
    """Check that one file's distributions are such, over what was neither chosen nor seen before it."""
    refuse = _refuser(path, table["example_id"].to_pylist())
    codes = _flat(table[SHARES])
    refuse(np.full(len(table), codes.dtype != np.uint16), f"has {SHARES} of an older version: run `rosepo pairs` again")
    shares = from_codes(codes)
    refuse(np.full(len(table), shares.size != len(table) * n_items), f"has {SHARES} of another catalogue")
    shares = shares.reshape(len(table), -1)
    sound = np.isfinite(shares).all(axis=1) & (shares >= 0).all(axis=1) & (np.abs(shares.sum(axis=1) - 1) < 0.02)
    refuse(~sound, f"has {SHARES} that are no distribution")
    known = zip(items_of(table, "chosen_item"), item_lists(source, "seen"))
    taken = [row[[chosen, *seen]].any() for row, (chosen, seen) in zip(shares, known)]
    refuse(np.array(taken), f"has {SHARES} for a title that cannot be drawn")


def _check_tokens(path: Path, table: pa.Table, source: pa.Table, builder: PromptBuilder) -> int:
    """Compare one file's tokens with those that the evaluation would decode; returns how many histories were cut."""
    refuse = _refuser(path, table["example_id"].to_pylist())
    histories = item_lists(source, "history")
    listed = item_matrix(source, "candidates") if "candidates" in source.column_names else None
    made, dropped = builder.prompts(histories, listed)
    prompts = zip(table["prompt_ids"].to_pylist(), made)
    refuse(np.array([ids != other.tolist() for ids, other in prompts]), "has another prompt than its history gives")
    items = zip(items_of(table, "chosen_item").tolist(), item_matrix(table, "rejected_items"))
    expected = [[builder.completion(item).tolist() for item in (chosen, *rejected)] for chosen, rejected in items]
    found = zip(table["chosen_ids"].to_pylist(), table["rejected_ids"].to_pylist())
    wrong = [[chosen, *rejected] != titles for (chosen, rejected), titles in zip(found, expected)]
    refuse(np.array(wrong), "has a title with other tokens than the evaluation decodes")
    return int((np.array(dropped) > 0).sum())


def _alike(table: pa.Table) -> np.ndarray:
    """Whether two titles of a group have the same tokens; bool [n]."""
    groups = zip(table["chosen_ids"].to_pylist(), table["rejected_ids"].to_pylist())
    return np.array([len({tuple(ids) for ids in (chosen, *rejected)}) <= len(rejected) for chosen, rejected in groups])


def _flat(column: pa.ChunkedArray) -> np.ndarray:
    return column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
