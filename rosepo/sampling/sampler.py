"""What rejected titles are drawn from: examples as arrays of item indexes."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from rosepo.data.example_shards import COLUMNS, example_files
from rosepo.data.item_columns import flat_items, item_matrix, items_of
from rosepo.data.random import example_keys
from rosepo.sampling.strategies.example_batch import Examples
from rosepo.utils.errors import UserError


def examples_of(table: pa.Table, n_items: int) -> Examples:
    """A table of examples (see `read_shard`) over a catalogue of `n_items` items as arrays, without prompts."""
    ids = table["example_id"].to_numpy()
    history_items, history_offsets = flat_items(table, "history")
    seen_items, seen_offsets = flat_items(table, "seen")
    return Examples(
        keys=example_keys(ids),
        history_items=history_items,
        history_offsets=history_offsets,
        targets=items_of(table, "target"),
        n_items=n_items,
        seen_items=seen_items,
        seen_offsets=seen_offsets,
        candidates=item_matrix(table, "candidates") if "candidates" in table.column_names else None,
        ids=ids,
        users=table["user_id"].to_numpy(),
    )


def check_columns(examples: Path, candidates: bool) -> None:
    """Refuse examples without a column that sampling reads; `candidates` is one if asked for.

    Raises:
        UserError: naming file, column and remedy.
    """
    for path in example_files(examples):
        names = pq.read_schema(path).names
        if candidates and "candidates" not in names:
            raise UserError(
                f"{path} has no candidate lists, which pairs.strategies.candidates draws from and prompts list under"
                " model.template.candidates=true: set prepare.candidates to at least 2 and run `rosepo prepare` again"
            )
        missing = [name for name in (*COLUMNS, "split") if name not in names]
        if missing:
            raise UserError(f"{path} has no column '{missing[0]}': run `rosepo prepare` again")
