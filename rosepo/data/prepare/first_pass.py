"""What must be known of the whole log before it is encoded: users and items with their rows, block by block."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

MERGE_SCANS = 32
ENDS = {"earliest": pc.min, "latest": pc.max}
"""Of the times of a block, or of all."""


def scan(table: pa.Table, min_rating: float | None) -> dict[str, pa.Array]:
    """What the driver must know of a block: its users and items, each with rows in all and rows that are positive.

    Returns:
        user, user_rows, user_positives, item, item_rows, item_positives; unrated [1], rows without a rating; earliest
        and latest [1], times.
    """
    counted = pa.table(
        {
            "user": table["user_id"],
            "item": table["item_id"],
            "rows": np.ones(table.num_rows, dtype=np.int64),
            "positives": positives(table, min_rating),
        }
    )
    found: dict[str, pa.Array] = {"unrated": pa.array([table["rating"].null_count], pa.int64())}
    found |= {name: pa.array([ends(table["timestamp"]).as_py()], pa.float64()) for name, ends in ENDS.items()}
    for name in ("user", "item"):
        groups = counted.group_by(name, use_threads=False).aggregate([("rows", "sum"), ("positives", "sum")])
        found[name] = groups[name].combine_chunks()
        found[f"{name}_rows"] = groups["rows_sum"].combine_chunks()
        found[f"{name}_positives"] = groups["positives_sum"].combine_chunks()
    return found


def merge_scans(scans: Iterable[dict[str, pa.Array]], schema: pa.Schema) -> dict[str, pa.Array]:
    """One scan of all blocks (of interactions of `schema`), in any order of ids.

    Scans are merged as they arrive, so that what is held follows users and items, not rows.
    """
    held = [scan(schema.empty_table(), None)]
    for found in scans:
        held.append(found)
        if len(held) > MERGE_SCANS:
            held = [_merged(held)]
    return _merged(held)


def _merged(scans: Sequence[dict[str, pa.Array]]) -> dict[str, pa.Array]:
    merged = {"unrated": pa.array([sum(found["unrated"][0].as_py() for found in scans)], pa.int64())}
    for name, ends in ENDS.items():
        merged[name] = pa.array([ends(pa.concat_arrays([found[name] for found in scans])).as_py()], pa.float64())
    for name in ("user", "item"):
        names = [name, f"{name}_rows", f"{name}_positives"]
        parts = pa.concat_tables([pa.table([found[key] for key in names], names=names) for found in scans])
        groups = parts.group_by(name).aggregate([(key, "sum") for key in names[1:]])
        columns = [groups[key].combine_chunks() for key in (name, *(f"{key}_sum" for key in names[1:]))]
        merged |= dict(zip(names, columns))
    return merged


def positives(table: pa.Table, min_rating: float | None) -> np.ndarray:
    """Mask [n] int64 (0 or 1) of the interactions rated at least `min_rating`; all where that is None."""
    if min_rating is None:
        return np.ones(table.num_rows, dtype=np.int64)
    rated = pc.fill_null(pc.greater_equal(table["rating"], min_rating), False)
    return rated.to_numpy().astype(np.int64)
