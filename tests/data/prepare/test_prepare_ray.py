"""`prepare` as it runs: through Ray Data, into files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from rosepo.config import Config
from rosepo.data.catalogue import Catalogue
from rosepo.data.prepare import log
from rosepo.data.prepare.prepare import inspect_data, prepare
from rosepo.run.paths import RunPaths
from tests.data.tables import config_for, prepared, random_rows, titles, with_ids, write_data

pytestmark = pytest.mark.usefixtures("ray_cluster")


def run(config: Config, out: Path) -> dict[str, Any]:
    out.mkdir()
    return prepare(config, RunPaths(out.parent), out)


def content(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*.parquet"))}


@pytest.mark.parametrize("text", [False, True])
def test_files_hold_what_the_same_functions_give_in_one_process(
    tmp_path: Path, text: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "BUCKET_ROWS", 400)
    data = write_data(tmp_path, random_rows(2_000, 1, text), titles(text))
    config = config_for(data, k_core=3, candidates=3, max_history=8, split="temporal")
    figures = run(config, tmp_path / "examples")
    examples, shared, filtered = prepared(config)
    found = pq.read_table(tmp_path / "examples")
    catalogue = Catalogue.load(tmp_path / "examples" / "_items.parquet")
    assert with_ids(found.to_pylist(), catalogue) == examples
    assert with_ids(pq.read_table(tmp_path / "examples" / "_trajectories").to_pylist(), catalogue) == shared
    user, lists = pa.string() if text else pa.int64(), pa.list_(pa.int32())
    assert found.schema.types == [pa.string(), user, pa.string(), pa.int32(), lists, pa.int32(), lists]
    report = inspect_data(config)
    assert {name: report[name] for name in figures if name != "seconds"} == {
        name: value for name, value in figures.items() if name != "seconds"
    }
    assert catalogue.titles == filtered.catalogue.titles
    assert len(list((tmp_path / "examples").glob("part-*.parquet"))) > 1


def test_users_never_straddle_files_and_rows_are_ordered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "BUCKET_ROWS", 300)
    data = write_data(tmp_path, random_rows(2_000, 2, False), titles(False))
    figures = run(config_for(data, k_core=2), tmp_path / "examples")
    seen: list[tuple[int, int]] = []
    for part in sorted((tmp_path / "examples").glob("part-*.parquet")):
        table = pq.read_table(part)
        users = table["user_id"].to_pylist()
        assert not seen or users[0] > seen[-1][0]
        seen += list(zip(users, table["position"].to_pylist()))
    assert seen == sorted(seen)
    assert len(seen) == sum(figures["examples"].values())
    counted = Catalogue.load(tmp_path / "examples" / "_items.parquet").train_count.sum()
    assert counted == figures["interactions"] - 2 * figures["users"]


@pytest.mark.parametrize("ties", ["hash", "file"])
def test_bytes_do_not_depend_on_files_and_block_sizes_nor_on_row_order_unless_it_breaks_ties(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ties: str
) -> None:
    monkeypatch.setattr(log, "BUCKET_ROWS", 300)
    rows = [(user, item, rating, time // 40) for user, item, rating, time in random_rows(1_500, 3, False)]
    data = write_data(tmp_path, rows, titles(False))
    whole = config_for(data, k_core=2, candidates=4, ties=ties)
    run(whole, tmp_path / "a")
    split = tmp_path / "log"
    split.mkdir()
    table = pq.read_table(data["interactions"])
    order = np.arange(table.num_rows)
    if ties == "hash":
        np.random.default_rng(0).shuffle(order)
    for number, places in enumerate(np.array_split(order, 5)):
        pq.write_table(table.take(pa.array(places)), split / f"part-{number}.parquet", row_group_size=200)
    parts = config_for({**data, "interactions": str(split)}, k_core=2, candidates=4, ties=ties)
    context = ray.data.DataContext.get_current()
    monkeypatch.setattr(context, "target_max_block_size", 2_048)
    run(parts, tmp_path / "b")
    assert content(tmp_path / "a") == content(tmp_path / "b")


def test_the_embedded_data_gives_the_known_numbers(tmp_path: Path) -> None:
    config = config_for({"dataset": "movietweetings-100k"}, min_rating=7, duplicate_titles="disambiguate")
    figures = run(config, tmp_path / "examples")
    assert (figures["users"], figures["items"], figures["interactions"]) == (3_452, 1_714, 44_036)
    assert figures["examples"] == {"train": 33_680, "validation": 3_452, "test": 3_452}
