"""Groups of validation examples: what `align` looks at while it trains.

They are made as the others are, by the same strategies, models and actors, from a sample of the validation split, and
stand beside them in a file of their own that readers of Parquet folders pass over. No training sees them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rosepo.config import Config
from rosepo.data.catalogue import Catalogue
from rosepo.data.seen import read_split
from rosepo.run.paths import RunPaths
from rosepo.sampling.strategies.mixture import max_negatives

EXAMPLES_FILE = "_validation_examples.parquet"
MOST = 256
"""Validation examples that become groups."""


def validation_examples(config: Config, paths: RunPaths, catalogue: Catalogue, negatives: int) -> pa.Table | None:
    """At most `MOST` validation examples, those with the smallest hash; None where there can be no groups of them.

    Titles alone are not trained on. Examples that leave too few titles to reject are left out.
    """
    pairs = config.pairs
    if not pairs.score:
        return None
    extra = ("candidates",) if config.reads_candidates else ()
    table = pa.concat_tables(read_split(paths.examples, "validation", MOST, extra)).slice(0, MOST)
    lengths = [len(seen) for seen in table["seen"].to_pylist()]
    fits = np.array([negatives <= max_negatives(catalogue, length) for length in lengths], dtype=bool)
    table = table.filter(pa.array(fits))
    return table if len(table) else None


@contextmanager
def written(examples: pa.Table, out: Path) -> Iterator[None]:
    """Such examples in the file of their shard in `out`, for the actor that turns them into groups."""
    path = out / EXAMPLES_FILE
    try:
        pq.write_table(examples, path)
        yield
    finally:
        path.unlink(missing_ok=True)
