"""Part files of a groups table while it grows: each is whole or not there, and a later run goes on from those that are.

Beside a part stands a small file with its shard and its figures, written first; it is taken away when the table is
complete.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rosepo.data.example_shards import VALIDATION, VALIDATION_FILE, Shard
from rosepo.run.shard_files import whole_part
from rosepo.sampling.tally import Tally
from rosepo.utils.errors import StageError
from rosepo.utils.files import write_json


def part_path(folder: Path, shard: Shard) -> Path:
    """Where the groups of a shard stand."""
    return folder / (VALIDATION_FILE if shard.number == VALIDATION else f"part-{shard.number:05d}.parquet")


def write_part(folder: Path, shard: Shard, origin: str, table: pa.Table, tally: Tally) -> None:
    """Write the groups of a shard, whole or not at all, and beside them what `tally` has counted.

    Args:
        origin: digest of all that the groups were made from; see `finished_parts`.

    Raises:
        StageError: the disk is full.
    """
    path = part_path(folder, shard)
    with whole_part(path) as aside:
        with tally.timed("write"):
            pq.write_table(table, aside, compression="zstd")
        write_json(_about(path), {"shard": shard.key, "origin": origin, "figures": tally.to_dict()})


def finished_parts(folder: Path, shards: Sequence[Shard], origin: str) -> dict[int, dict[str, Any]]:
    """Figures of the shards, by number, whose parts are finished and were made from the same models, examples and
    code (`origin`); every other part in the folder is removed."""
    found: dict[int, dict[str, Any]] = {}
    keep = set()
    for shard in shards:
        path = part_path(folder, shard)
        try:
            about = json.loads(_about(path).read_text(encoding="utf-8"))
            whole = pq.read_metadata(path).num_rows == shard.count
            if whole and about["shard"] == shard.key and about["origin"] == origin:
                found[shard.number] = about["figures"]
                keep |= {path.name, _about(path).name}
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):
            continue
    for entry in folder.glob("*part-*"):
        if entry.name not in keep:
            entry.unlink(missing_ok=True)
    return found


def complete(folder: Path, shards: Sequence[Shard]) -> None:
    """Take away what only a later run would have needed.

    Raises:
        StageError: a part is not there.
    """
    missing = [shard for shard in shards if not part_path(folder, shard).exists()]
    if missing:
        raise StageError(f"{len(missing)} of {len(shards)} shards of groups were not written: run the stage again")
    for shard in shards:
        _about(part_path(folder, shard)).unlink()


def _about(path: Path) -> Path:
    return path.with_name(f"_{path.stem}.json")
