"""Groups of validation examples: what `align` looks at while it trains.

They are made as the others are, by the same strategies, models and actors, from a sample of the validation split, and
stand beside them in a file of their own that readers of Parquet folders pass over. No training sees them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rosepo.artifacts import Outputs
from rosepo.config import PairsConfig
from rosepo.data.catalogue import Catalogue
from rosepo.data.seen import read_split
from rosepo.models.scorers import read_about
from rosepo.sampling.mixture import max_negatives
from rosepo.sampling.plan import UNIT, VALIDATION, Shard

EXAMPLES_FILE = "_validation_examples.parquet"


def validation_shard(pairs: PairsConfig, inputs: Outputs, catalogue: Catalogue, out: Path) -> Shard | None:
    """At most one unit of validation examples, those with the smallest hash, written into `out` for the actor that
    turns them into groups; None where there can be no such groups.

    Titles alone are not trained on, and a table of scores knows the pairs of training alone. Examples that leave too
    few titles to reject are left out.
    """
    if not pairs.score or read_about(inputs.oracle)["kind"] == "table":
        return None
    extra = ("candidates",) if "candidates" in pairs.used else ()
    table = pa.concat_tables(read_split(inputs.examples, "validation", UNIT, extra)).slice(0, UNIT)
    lengths = [len(seen) for seen in table["seen"].to_pylist()]
    fits = np.array([pairs.negatives <= max_negatives(catalogue, length) for length in lengths], dtype=bool)
    table = table.filter(pa.array(fits))
    if not len(table):
        return None
    path = out.resolve() / EXAMPLES_FILE
    pq.write_table(table, path)
    return Shard(VALIDATION, str(path), 0, len(table))
