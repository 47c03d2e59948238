"""Small data sets written as files, and `prepare` run on them in this process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rosepo.config import Config, parse_config
from rosepo.data.catalogue import Catalogue
from rosepo.data.prepare.examples import bucket_tables, lay_out
from rosepo.data.prepare.log import LocalBlocks
from rosepo.data.prepare.prepare import Filtered, filter_log
from rosepo.data.readers.interactions import interaction_tables, plan_reading, read_items
from rosepo.utils.console import Progress

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
"""Real raw files, on machines that have them."""

Row = tuple[Any, Any, float | None, float]


def random_rows(n: int, seed: int, text: bool) -> list[Row]:
    """Interactions of sixty users and forty items, many of them at the same moment."""
    rng = np.random.default_rng(seed)
    users, items = rng.integers(1, 60, n), rng.zipf(1.4, n) % 40
    times = rng.integers(0, 400, n)
    rows: list[Row] = []
    for user, item, time in zip(users.tolist(), items.tolist(), times.tolist()):
        rows.append((f"u{user}" if text else user, f"i{item:02d}" if text else item, 4.0, float(time)))
    return rows


def titles(text: bool) -> dict[Any, str]:
    """Titles of the items of `random_rows`."""
    return {(f"i{item:02d}" if text else item): f"Title {item}" for item in range(40)}


def write_data(folder: Path, rows: Sequence[Row], titles: dict[Any, str]) -> dict[str, str]:
    """`interactions.parquet` and `items.parquet`, and the `data` section that names them."""
    user, item, rating, timestamp = (list(column) for column in zip(*rows)) if rows else ([], [], [], [])
    table = pa.table({"user_id": user, "item_id": item, "rating": rating, "timestamp": timestamp})
    pq.write_table(table, folder / "interactions.parquet")
    items = {"item_id": list(titles), "title": list(titles.values())}
    pq.write_table(pa.table(items), folder / "items.parquet")
    return {"interactions": str(folder / "interactions.parquet"), "items": str(folder / "items.parquet")}


def config_for(data: dict[str, Any], seed: int = 0, **prepare: Any) -> Config:
    return parse_config({"seed": seed, "data": data, "prepare": prepare})


def all_interactions(config: Config) -> pa.Table:
    """Every interaction that the readers give, without the number of its row."""
    plan = plan_reading(config.data, "interactions")
    tables = [table for number, piece in plan.pieces for table in interaction_tables(plan, number, piece)]
    return pa.concat_tables(tables).drop_columns("row")


def with_ids(rows: list[dict[str, Any]], catalogue: Catalogue) -> list[dict[str, Any]]:
    """The rows of a run's table with item ids where it has item indexes."""
    ids = catalogue.item_ids.tolist()

    def decoded(name: str, value: Any) -> Any:
        if name == "target":
            return ids[value]
        return [ids[item] for item in value] if name in ("history", "candidates", "items") else value

    return [{name: decoded(name, value) for name, value in row.items()} for row in rows]


def prepared(config: Config) -> tuple[list[dict[str, Any]], list[dict[str, Any]], Filtered]:
    """Rows of examples and trajectories, computed without Ray, with item ids."""
    blocks = LocalBlocks(plan_reading(config.data, "interactions"), Progress("reading", None))
    filtered = filter_log(config, blocks, read_items(config.data))
    examples: list[dict[str, Any]] = []
    shared: list[dict[str, Any]] = []
    for bucket in filtered.log.buckets:  # type: ignore[attr-defined]
        first, second = bucket_tables(lay_out(bucket, filtered.recipe), filtered.recipe)
        examples += first.to_pylist()
        shared += second.to_pylist()
    return with_ids(examples, filtered.catalogue), with_ids(shared, filtered.catalogue), filtered
