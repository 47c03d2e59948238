"""Training examples as sequences: a row holds all that share a history, and its last items are their targets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

TRAJECTORIES = "_trajectories"
_ROWS = 65_536


def trajectory_batches(examples: Path, columns: tuple[str, ...] = ("items", "n_targets")) -> Iterator[pa.Table]:
    """The training sequences of an examples table in order, some thousand rows at a time.

    Args:
        columns: of user_id, items (indexes, oldest first) and n_targets.
    """
    for path in sorted((examples / TRAJECTORIES).glob("*.parquet")):
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_ROWS, columns=list(columns)):
                yield pa.Table.from_batches([batch])
