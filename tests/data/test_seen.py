"""What lies before an example, also outside its cut history."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rosepo.data.prepare.examples import bucket_tables, lay_out, sequences
from rosepo.data.prepare.log import LocalBlocks
from rosepo.data.prepare.prepare import filter_log
from rosepo.data.readers.interactions import plan_reading, read_items
from rosepo.data.seen import SEQUENCES, read_split, with_seen
from rosepo.utils.console import Progress
from rosepo.utils.errors import UserError
from tests.data.tables import config_for, random_rows, titles, write_data
from tests.helpers import run_table


def write_prepared(folder: Path, rows: int, seed: int, text: bool, **prepare: object) -> None:
    """The files of a prepared log, without Ray."""
    config = config_for(write_data(folder, random_rows(rows, seed, text), titles(text)), k_core=2, **prepare)
    filtered = filter_log(
        config,
        LocalBlocks(plan_reading(config.data, "interactions"), Progress("reading", None)),
        read_items(config.data),
    )
    (folder / SEQUENCES).mkdir(exist_ok=True)
    for number, bucket in enumerate(filtered.log.buckets):  # type: ignore[attr-defined]
        layout = lay_out(bucket, filtered.recipe)
        examples, _ = bucket_tables(layout, filtered.recipe)
        pq.write_table(examples, folder / f"part-{number:05d}.parquet", row_group_size=50)
        pq.write_table(sequences(layout, filtered.recipe), folder / SEQUENCES / f"part-{number:05d}.parquet")


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 99), st.booleans(), st.integers(1, 6), st.sampled_from(["anchored", "sliding"]))
def test_seen_is_the_whole_past_and_ends_with_the_history(
    tmp_path_factory: pytest.TempPathFactory, seed: int, text: bool, max_history: int, window: str
) -> None:
    folder = tmp_path_factory.mktemp("prepared")
    write_prepared(folder, 300, seed, text, max_history=max_history, window=window)
    for path in sorted(folder.glob("part-*.parquet")):
        table = pq.read_table(path)
        past: dict[object, list[object]] = {}
        for row in with_seen(table, path).to_pylist():
            assert len(row["seen"]) == row["position"]
            assert row["seen"][len(row["seen"]) - len(row["history"]) :] == row["history"]
            before = past.setdefault(row["user_id"], row["seen"])
            assert row["seen"][: len(before)] == before
            assert row["target"] not in row["seen"]
            past[row["user_id"]] = [*row["seen"], row["target"]]


def test_a_table_without_sequences_is_taken_at_its_word(tmp_path: Path) -> None:
    table = run_table([{"user_id": 1, "position": 5, "history": [3, 4]}])
    assert with_seen(table, tmp_path / "part-00000.parquet")["seen"].to_pylist() == [[3, 4]]


@pytest.mark.parametrize("sequence", [(2, [7, 8, 9, 3, 4, 6]), (1, [7, 8])])
def test_sequences_of_another_table_are_refused(tmp_path: Path, sequence: tuple[int, list[int]]) -> None:
    (tmp_path / SEQUENCES).mkdir()
    rows = run_table([{"user_id": sequence[0], "items": sequence[1]}])
    pq.write_table(rows, tmp_path / SEQUENCES / "part-00000.parquet")
    table = run_table([{"user_id": 1, "position": 5, "history": [3, 4]}])
    with pytest.raises(UserError, match="rosepo prepare"):
        with_seen(table, tmp_path / "part-00000.parquet")


@pytest.mark.parametrize("limit", [None, 5, 10_000])
def test_a_limited_split_is_the_same_choice_whatever_the_files(tmp_path: Path, limit: int | None) -> None:
    write_prepared(tmp_path, 400, 3, False, max_history=3)
    found = pa.concat_tables(read_split(tmp_path, "test", limit))
    everything = pa.concat_tables(read_split(tmp_path, "test"))
    assert len(found) == min(len(everything), limit or len(everything))
    whole = pa.concat_tables([pq.read_table(path) for path in sorted(tmp_path.glob("part-*.parquet"))])
    (tmp_path / "whole").mkdir()
    pq.write_table(whole, tmp_path / "whole" / "part-00000.parquet")
    again = pa.concat_tables(read_split(tmp_path / "whole", "test", limit))
    assert again["example_id"].to_pylist() == found["example_id"].to_pylist()
