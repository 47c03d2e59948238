"""`rosepo check --groups`: what every groups table promises, looked at again, whoever wrote it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rosepo.data.catalogue import Catalogue
from rosepo.data.seen import COLUMNS as EXAMPLE_COLUMNS
from rosepo.data.seen import with_seen
from rosepo.errors import UserError
from rosepo.sampling.plan import example_files

COLUMNS = (
    "example_id", "chosen_item", "chosen_ids", "rejected_items", "rejected_ids", "strategy", "epsilon", "oracle_scores",
    "ref_logps",
)  # fmt: skip


def audit_groups(groups: Path, examples: Path) -> dict[str, Any]:
    """Go through a groups table, a file at a time, beside the examples that it was made from, in the same order.

    Held: the chosen item is the example's target; K rejected items in every group, in the catalogue, distinct, never
    the target, never seen before it; epsilon finite and in [0, 1/2); scores and reference log-probabilities finite,
    1 + K each; no two titles of a group with the same tokens; every group once.

    Returns:
        groups, pairs, negatives (K), epsilon (mean by strategy).

    Raises:
        UserError: the first promise that is broken, naming file and example; no groups, or missing columns.
    """
    files = sorted(groups.glob("part-*.parquet"))
    if not files:
        raise UserError(f"{groups} holds no groups (part-*.parquet): run `rosepo pairs` first")
    catalogue = Catalogue.load(examples / "_items.parquet")
    sources = _sources(examples)
    source = next(sources)
    sums: dict[str, list[float]] = {}
    negatives, count, pairs = None, 0, 0
    for path in files:
        missing = [name for name in COLUMNS if name not in pq.read_schema(path).names]
        if missing:
            raise UserError(f"{path} has no column '{missing[0]}': it is no groups table")
        table = pq.read_table(path, columns=list(COLUMNS))
        while (rows := pc.index_in(table["example_id"], source["example_id"].combine_chunks())).null_count:
            found = next(sources, None)
            if found is None:
                name = table["example_id"].filter(pc.is_null(rows))[0].as_py()
                raise UserError(f"{path}: {name} is no training example of {examples}, or stands out of order")
            source = pa.concat_tables([source, found])
        negatives = _check_file(path, table, source.take(rows), catalogue, negatives)
        source = source.slice(pc.max(rows).as_py() + 1)
        count, pairs = count + len(table), pairs + len(table) * negatives
        for name, value in zip(_flat(table["strategy"]), _flat(table["epsilon"])):
            entry = sums.setdefault(name, [0.0, 0.0])
            entry[0], entry[1] = entry[0] + value, entry[1] + 1
    means = {name: float(total / n) for name, (total, n) in sorted(sums.items())}
    return {"groups": count, "pairs": pairs, "negatives": negatives, "epsilon": means}


def _sources(examples: Path) -> Iterator[pa.Table]:
    """Training examples file by file, with what was seen before each."""
    for path in example_files(examples):
        columns = [name for name in EXAMPLE_COLUMNS if name in pq.read_schema(path).names]
        table = pq.read_table(path, columns=columns, filters=[("split", "==", "train")])
        yield with_seen(table, path)


def _check_file(path: Path, table: pa.Table, source: pa.Table, catalogue: Catalogue, negatives: int | None) -> int:
    """Check the groups of one file against their examples; returns K."""
    ids = table["example_id"].to_pylist()

    def refuse(wrong: Any, what: str) -> None:
        if wrong.any():
            raise UserError(f"{path}: the group of example {ids[int(np.argmax(wrong))]} {what}")

    _, first = np.unique(np.array(ids, dtype=object).astype(str), return_index=True)
    refuse(~np.isin(np.arange(len(ids)), first), "stands there twice")
    for name, extra in (("rejected_items", 0), ("strategy", 0), ("epsilon", 0), ("oracle_scores", 1), ("ref_logps", 1)):
        sizes = pc.list_value_length(table[name]).to_numpy() - extra
        negatives = int(sizes[0]) if negatives is None else negatives
        refuse(sizes != negatives, f"has {name} for another number of rejected titles than {negatives}")
    assert negatives is not None
    chosen = catalogue.index(table["chosen_item"].to_numpy())
    refuse(chosen != catalogue.index(source["target"].to_numpy()), "has another chosen title than the example's target")
    rejected = catalogue.index(_flat(table["rejected_items"])).reshape(len(ids), negatives)
    ordered = np.sort(rejected, axis=1)
    refuse(np.any(ordered[:, 1:] == ordered[:, :-1], axis=1), "rejects one title twice")
    refuse(np.any(rejected == chosen[:, None], axis=1), "rejects its chosen title")
    keys = np.arange(len(ids))[:, None] * len(catalogue)
    seen = catalogue.index_lists(source["seen"])
    known = np.concatenate([row * len(catalogue) + items for row, items in enumerate(seen)])
    refuse(np.isin(keys + rejected, known).any(axis=1), "rejects a title that the user had chosen before")
    epsilon = np.asarray(_flat(table["epsilon"]), dtype=np.float64).reshape(len(ids), negatives)
    refuse(~((epsilon >= 0) & (epsilon < 0.5)).all(axis=1), "has an epsilon outside [0, 1/2)")
    for name in ("oracle_scores", "ref_logps"):
        values = np.asarray(_flat(table[name]), dtype=np.float64).reshape(len(ids), negatives + 1)
        refuse(~np.isfinite(values).all(axis=1), f"has {name} that are not finite")
    refuse(_alike(table), "has two titles of the same tokens")
    return negatives


def _alike(table: pa.Table) -> np.ndarray:
    """Whether two titles of a group have the same tokens; bool [n]."""
    groups = zip(table["chosen_ids"].to_pylist(), table["rejected_ids"].to_pylist())
    return np.array([len({tuple(ids) for ids in (chosen, *rejected)}) <= len(rejected) for chosen, rejected in groups])


def _flat(column: pa.ChunkedArray) -> np.ndarray:
    return column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
