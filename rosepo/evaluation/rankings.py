"""Rankings on disk: the twenty best items of every system for each of the examples that are measured.

A system's rankings are a folder of part files, each whole or not there, of some batches each: whoever ranks writes
them, nobody collects them, and a later run makes those that are missing. Every figure can be computed again from them.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rosepo.data.item_columns import INDEX, flat_items
from rosepo.evaluation.measured_examples import Batch, Part
from rosepo.metrics.ranking import target_ranks
from rosepo.run.shard_files import whole_part
from rosepo.utils.errors import StageError
from rosepo.utils.files import write_json
from rosepo.utils.list_columns import list_column

DEPTH = 20
"""Places of a ranking that are kept."""
NO_ITEM = -2
"""A place that is taken by no title of the catalogue, or by one that stands before: wrong whatever the target is."""
RANKINGS_FOLDER = "rankings"
ORIGIN = "_origin.json"


def open_rankings(folder: Path, parts: Sequence[Part], origin: str, earlier: Path | None = None) -> list[Part]:
    """Make the folder of a system's rankings ready; the parts that are left to make.

    Args:
        origin: digest of all that the rankings are made from. Parts of another origin are removed.
        earlier: rankings that a finished evaluation has; taken over where they have the same origin.
    """
    if _origin(folder) != origin:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        if earlier is not None and _origin(earlier) == origin:
            for part in parts:
                _link(earlier / part.name, folder / part.name)
        write_json(folder / ORIGIN, {"origin": origin})
    left = [part for part in parts if not _is_whole(folder, part)]
    names = {part.name for part in parts} - {part.name for part in left} | {ORIGIN}
    for entry in folder.iterdir():
        if entry.name not in names:
            entry.unlink()
    return left


def check_complete(folder: Path, parts: Sequence[Part]) -> None:
    """Raises StageError where a part is not there."""
    missing = sum(not (folder / part.name).exists() for part in parts)
    if missing:
        raise StageError(f"{missing} of {len(parts)} parts of {folder.stem} were not ranked: run the stage again")


def write_part(folder: Path, part: Part, tables: Sequence[pa.Table]) -> None:
    """Write the rankings of a part's batches, whole or not at all.

    Raises:
        StageError: the disk is full.
    """
    with whole_part(folder / part.name) as aside:
        pq.write_table(pa.concat_tables(tables), aside, compression="zstd")


def rankings_table(batch: Batch, items: np.ndarray, scores: np.ndarray) -> pa.Table:
    """Rankings as a table: example_id, user_id, target, rank (0 is first, -1 absent), items and scores, best first;
    target and items are item indexes.

    Args:
        items: item indexes int64 [B, k], padded with -1; `NO_ITEM` becomes null.
        scores: float32 [B, k].
    """
    taken = items != -1
    lengths, flat = taken.sum(axis=1), items[taken]
    return pa.table(
        {
            "example_id": pa.array(batch.example_ids, pa.string()),
            "user_id": batch.users,
            "target": pa.array(batch.targets, INDEX),
            "rank": pa.array(target_ranks(items, batch.targets).astype(np.int32)),
            "items": list_column(pa.array(flat, INDEX, mask=flat < 0), lengths),
            "scores": list_column(scores[taken].astype(np.float32), lengths),
        }
    )


def read_part(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Ranks int64 [n] and item indexes int32 [n, DEPTH] of a part, -1 where a place holds no title."""
    table = pq.read_table(path, columns=["rank", "items"], partitioning=None)
    found, offsets = flat_items(table, "items", np.int32)
    items = np.full((len(table), DEPTH), -1, dtype=np.int32)
    items[np.arange(DEPTH) < np.diff(offsets)[:, None]] = found
    return table["rank"].to_numpy().astype(np.int64), items


def read_rankings(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """All of a system's rankings, as `read_part` gives them: 88 bytes an example."""
    ranks, items = zip(*(read_part(path) for path in sorted(folder.glob("part-*.parquet"))), strict=True)
    return np.concatenate(ranks), np.concatenate(items)


def count_cut(folder: Path) -> dict[str, int]:
    """Prompts of a model's rankings that did not hold their whole history, and the items that they left out."""
    counts = {"prompts": 0, "items": 0}
    for path in sorted(folder.glob("part-*.parquet")):
        left_out = pq.read_table(path, columns=["left_out"], partitioning=None)["left_out"].to_numpy()
        counts["prompts"] += int((left_out > 0).sum())
        counts["items"] += int(left_out.sum())
    return counts


def _origin(folder: Path) -> str | None:
    try:
        found: str = json.loads((folder / ORIGIN).read_text(encoding="utf-8"))["origin"]
        return found
    except (OSError, ValueError, KeyError):
        return None


def _is_whole(folder: Path, part: Part) -> bool:
    try:
        return bool(pq.read_metadata(folder / part.name).num_rows == part.rows)
    except (OSError, pa.ArrowException):
        return False


def _link(source: Path, target: Path) -> None:
    """The same file under another name, or a copy where the file system has no links; nothing where it is gone."""
    try:
        os.link(source, target)
    except FileNotFoundError:
        return
    except OSError:
        shutil.copyfile(source, target)
