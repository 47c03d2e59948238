"""A few users of a prepared log, in place of all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rosepo.data.random import example_keys
from rosepo.data.seen import SEQUENCES, TRAJECTORIES

TABLES = (".", TRAJECTORIES, SEQUENCES)
"""Tables of `examples/` that have rows of users."""


def keep_users(examples: Path, count: int) -> int:
    """Leave at most `count` users in the tables of `examples`, those whose ids have the lowest hashes; the catalogue
    stays whole. Returns how many are left."""
    files = sorted((examples / SEQUENCES).glob("part-*.parquet"))
    users = pa.chunked_array([chunk for file in files for chunk in pq.read_table(file)["user_id"].chunks])
    keys = example_keys(users.cast(pa.string()).to_numpy(zero_copy_only=False))
    kept = users.take(pa.array(np.argsort(keys, kind="stable")[:count]))
    for folder in TABLES:
        for file in sorted((examples / folder).glob("part-*.parquet")):
            table = pq.read_table(file, partitioning=None)
            rows = table.filter(pc.is_in(table["user_id"], value_set=kept.combine_chunks()))
            if rows.num_rows:
                pq.write_table(rows, file, compression="zstd")
            else:
                file.unlink()
    return len(kept)
