"""What rejected titles are drawn from: examples as arrays of item indexes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rosepo.data.catalogue import Catalogue
from rosepo.data.example_shards import COLUMNS, example_files
from rosepo.sampling.strategies.example_batch import Examples
from rosepo.utils.errors import UserError


def examples_of(table: pa.Table, catalogue: Catalogue) -> Examples:
    """A table of examples (see `read_shard`) as arrays of item indexes, without prompts.

    Raises:
        UserError: an item that the catalogue does not hold.
    """
    columns = {name: table[name].combine_chunks() for name in ("history", "seen")}
    flat = {name: catalogue.index(column.flatten().to_numpy(zero_copy_only=False)) for name, column in columns.items()}
    offsets = {name: _offsets(column) for name, column in columns.items()}
    ids = table["example_id"].to_numpy()
    made = Examples.of(ids, [], catalogue.index(table["target"].to_numpy()), len(catalogue))
    candidates = None
    if "candidates" in table.column_names:
        candidates = catalogue.index_matrix(table["candidates"])
    return replace(
        made,
        history_items=flat["history"],
        history_offsets=offsets["history"],
        seen_items=flat["seen"],
        seen_offsets=offsets["seen"],
        candidates=candidates,
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


def _offsets(lists: pa.Array) -> np.ndarray:
    return np.append(0, np.cumsum(lists.value_lengths().to_numpy(zero_copy_only=False))).astype(np.int64)
