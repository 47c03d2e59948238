from __future__ import annotations

import datetime
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rosepo.data.catalogue import Catalogue
from rosepo.data.histories import HistoryReader, read_histories
from rosepo.utils.errors import UserError

FILMS = {7: "Heat", 12: "300", 300: "Gladiator", 1917: "1917", 2001: "2020-01-01"}


@pytest.fixture
def reader() -> HistoryReader:
    """Of a catalogue in which 300 is a film and the id of another one."""
    return HistoryReader(
        Catalogue(np.array(list(FILMS)), list(FILMS.values()), [()] * len(FILMS), np.zeros(len(FILMS), dtype=np.int64))
    )


def write(folder: Path, name: str, rows: list[str]) -> str:
    (folder / name).write_text("".join(row + "\n" for row in rows), encoding="utf-8")
    return str(folder / name)


def test_text_is_a_title_or_an_id_and_a_number_is_an_id(reader: HistoryReader) -> None:
    assert reader.indexes(["heat", "7", 7, "12", 12, "1917", "Gladiator", 300], "x").tolist() == [
        0,
        0,
        0,
        1,
        1,
        3,
        2,
        2,
    ]


def test_text_that_is_one_items_title_and_anothers_id_is_refused_naming_both(reader: HistoryReader) -> None:
    with pytest.raises(
        UserError, match=r"^row 4: '300' is the title of item 12 and the id of 'Gladiator': write '12' "
    ):
        reader.indexes(["Heat", " 300"], "row 4")


def test_a_number_is_never_taken_as_a_title(reader: HistoryReader) -> None:
    catalogue = Catalogue(np.array([1]), ["300"], [()], np.zeros(1, dtype=np.int64))
    with pytest.raises(UserError, match="300 is neither a title nor an item id"):
        HistoryReader(catalogue).indexes([300], "x")


def test_csv_gives_user_ids_as_they_are_written(reader: HistoryReader, tmp_path: Path) -> None:
    rows = ["user_id,history", '007,"[""Heat""]"', '2020-01-01,"[7, ""Gladiator""]"']
    users, histories = read_histories(write(tmp_path, "a.csv", rows), reader)
    assert users == ["007", "2020-01-01"]
    assert [history.tolist() for history in histories] == [[0], [0, 2]]
    assert json.dumps(users)


def test_json_lines_give_ids_and_titles_as_they_are_written(reader: HistoryReader, tmp_path: Path) -> None:
    rows = [
        '{"user_id": "2020-01-01", "history": ["2020-01-01"]}',
        '{"user_id": 9, "history": ["Heat", 300], "note": {"a": 1}}',
        "",
        '{"history": "[7]"}',
    ]
    users, histories = read_histories(write(tmp_path, "a.jsonl", rows), reader)
    assert users == ["2020-01-01", 9, None]
    assert [history.tolist() for history in histories] == [[4], [0, 2], [0]]


@pytest.mark.parametrize("user", [datetime.date(2020, 1, 1), 1.5, True, b"x"])
def test_other_user_ids_in_parquet_are_refused_before_any_model_runs(
    reader: HistoryReader, tmp_path: Path, user: object
) -> None:
    pq.write_table(pa.table({"user_id": [user], "history": [["Heat"]]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a.parquet, row 1: user_id .* is neither text nor an integer: store it as"):
        read_histories(str(tmp_path / "a.parquet"), reader)


def test_files_that_hold_no_histories_are_refused(reader: HistoryReader, tmp_path: Path) -> None:
    for name, rows, message in (
        ("a.jsonl", [], "holds no rows"),
        ("b.jsonl", ['{"a": 1}'], r"no column 'history' \(it has a\)"),
        ("c.jsonl", ['{"history": ["Heat"]}', "{"], "line 2 is not JSON"),
        ("d.jsonl", ["[1]"], "line 1 is not a JSON object"),
        ("e.jsonl", ['{"history": ["Heat"]}', "{}"], "row 2: history None is not a list"),
        ("f.csv", ["history,x"], "holds no rows"),
    ):
        with pytest.raises(UserError, match=message):
            read_histories(write(tmp_path, name, rows), reader)
