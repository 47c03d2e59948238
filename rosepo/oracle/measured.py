"""How the trained oracles do on validation: asked by the training's workers, on their devices, a share each.

Batches are fixed by the examples, and workers take turns with them: how many there are changes no score. Each writes
what it found, batch by batch, into files; the stage puts them together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rosepo.config import OracleConfig
from rosepo.oracle.calibration import NEGATIVES, score_batches
from rosepo.oracle.crossfit import CrossFitted, Oracle
from rosepo.oracle.log import Validation
from rosepo.oracle.sasrec_data import rank_batches
from rosepo.utils.errors import StageError
from rosepo.utils.list_columns import fixed

Batches = Iterator[tuple[np.ndarray, np.ndarray]]
"""Rows int64 [n] and their values [n, m]."""


@dataclass(frozen=True)
class Measured:
    """Of N validation examples.

    Attributes:
        held_out: int64 [N], rank of each target (0 is best) by the model that did not train on its user.
        everyone: int64 [N], the same by the model of all users.
        scores: float32 [N, 1 + NEGATIVES], of targets and other items, see `score_batches`.
    """

    held_out: np.ndarray
    everyone: np.ndarray
    scores: np.ndarray


def write_measured(
    oracle: OracleConfig,
    folder: Path,
    item_ids: np.ndarray,
    validation: Validation,
    seed: int,
    out: Path,
    rank: int,
    world: int,
    device: object,
) -> None:
    """One worker's share.

    Args:
        folder: of the oracle; every model of it is there.
        out: folder that workers write into.
        rank, world: of the worker.
    """
    out.mkdir(parents=True, exist_ok=True)
    scorer = CrossFitted.load(folder, item_ids, str(device))
    _write(out / f"scores-{rank}.parquet", score_batches(scorer, validation, len(item_ids), seed, rank, world))
    _write(out / f"held_out-{rank}.parquet", _ranks(scorer.oracles, validation, rank, world))
    if oracle.models > 1 and oracle.folds > 1:  # of a single one the log of its training tells, of a single fold this
        everyone = Oracle.load(folder, item_ids, str(device))
        _write(out / f"everyone-{rank}.parquet", _ranks([everyone], validation, rank, world))


def read_measured(out: Path, n: int) -> Measured:
    """What all workers wrote of `n` examples.

    Raises:
        StageError: some of it is not there.
    """
    scores = np.empty((n, 1 + NEGATIVES), dtype=np.float32)
    held_out, everyone = (np.empty((n, 1), dtype=np.int64) for _ in range(2))
    _read(out, "scores", scores)
    _read(out, "held_out", held_out)
    if list(out.glob("everyone-*.parquet")):
        _read(out, "everyone", everyone)
    else:
        everyone = held_out
    return Measured(held_out[:, 0], everyone[:, 0], scores)


def _ranks(oracles: Sequence[Oracle], validation: Validation, rank: int, world: int) -> Batches:
    """Each example by the oracle of its user's fold, or by the only one."""
    folds = validation.folds if len(oracles) > 1 else np.zeros(len(validation), dtype=np.int64)
    for fold in np.unique(folds):
        rows, model = np.flatnonzero(folds == fold), oracles[fold].model
        found = rank_batches(model, validation.histories, validation.targets, validation.seen, rows, rank, world)
        yield from ((part, ranks[:, None]) for part, ranks in found)


def _write(path: Path, batches: Batches) -> None:
    """Batch by batch: tables that are kept until the end would pin the memory of what is computed between them."""
    with ExitStack() as stack:
        writer: pq.ParquetWriter | None = None
        for rows, values in batches:
            table = pa.table({"row": rows, "values": fixed(values)})
            writer = writer or stack.enter_context(pq.ParquetWriter(path, table.schema))
            writer.write_table(table)


def _read(out: Path, name: str, values: np.ndarray) -> None:
    """Put the rows of all workers' files into `values` [N, m]."""
    there = 0
    for path in out.glob(f"{name}-*.parquet"):
        table = pq.read_table(path)
        values[table["row"].to_numpy()] = pc.list_flatten(table["values"]).to_numpy().reshape(len(table), -1)
        there += len(table)
    if there != len(values):
        raise StageError(f"oracle: {there} of {len(values)} validation examples were measured: run the stage again")
