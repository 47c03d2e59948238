"""A log of which few users are kept: theirs is what it was, and the catalogue stays whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from rosepo.data.catalogue import Catalogue
from rosepo.data.prepare import log
from rosepo.data.prepare.prepare import inspect_data, prepare
from rosepo.run.paths import RunPaths
from tests.data.tables import config_for, prepared, random_rows, titles, write_data


def users_of(rows: list[dict[str, Any]]) -> set[Any]:
    return {row["user_id"] for row in rows}


@pytest.mark.parametrize("split", ["leave_one_out", "temporal"])
@pytest.mark.parametrize("text", [False, True])
def test_users_that_stay_keep_their_examples_and_more_of_them_hold_fewer(
    tmp_path: Path, text: bool, split: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "BUCKET_ROWS", 300)
    data = write_data(tmp_path, random_rows(2_000, 3, text), titles(text))
    everybody, _, whole = prepared(config_for(data, k_core=4, split=split))
    before: set[Any] = set()
    for count in (1, 7, 20, 1_000):
        found, shared, filtered = prepared(config_for(data, k_core=4, split=split, max_users=count))
        kept = users_of(found)
        assert before <= kept
        assert len(kept) == min(count, len(users_of(everybody)))
        assert found == [row for row in everybody if row["user_id"] in kept]
        assert users_of(shared) <= kept
        assert filtered.catalogue.titles == whole.catalogue.titles
        before = kept


def test_what_is_left_out_is_counted(tmp_path: Path, ray_cluster: None) -> None:
    data = write_data(tmp_path, random_rows(2_000, 3, False), titles(False))
    config = config_for(data, k_core=4, max_users=10)
    (tmp_path / "examples").mkdir()
    figures = prepare(config, RunPaths(tmp_path), tmp_path / "examples")
    assert figures["users"] == 10
    assert figures["rows"] == figures["interactions"] + sum(step["rows"] for step in figures["dropped"])
    assert figures["dropped"][-1]["why"] == "of users beyond prepare.max_users=10"
    assert figures["dropped"][-1]["rows"] > 0
    assert {name: inspect_data(config)[name] for name in ("users", "examples", "dropped")} == {
        name: figures[name] for name in ("users", "examples", "dropped")
    }
    trained = pq.read_table(tmp_path / "examples" / "_trajectories")
    counts = Catalogue.load(tmp_path / "examples" / "_items.parquet").train_count
    assert counts.sum() == sum(len(row) for row in trained["items"].to_pylist())


def test_most_users_and_all_of_them_are_the_same_log(tmp_path: Path) -> None:
    data = write_data(tmp_path, random_rows(500, 4, False), titles(False))
    assert prepared(config_for(data, k_core=2, max_users=10_000))[:2] == prepared(config_for(data, k_core=2))[:2]
