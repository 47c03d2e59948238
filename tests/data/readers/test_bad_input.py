"""Every fault of the data is one sentence that names file and remedy, from `check` and from `prepare` alike."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rosepo.data.prepare.log import RayBlocks
from rosepo.data.prepare.prepare import inspect_data
from rosepo.data.readers.interactions import plan_reading
from rosepo.utils.console import Progress
from rosepo.utils.errors import UserError
from tests.data.tables import config_for, write_data

HEAD = "user_id,item_id,rating,timestamp\n"
GOOD = HEAD + "".join(f"{user},{item},4,{item}\n" for user in range(4) for item in range(5))
ITEMS = "item_id,title\n" + "".join(f"{item},Title {item}\n" for item in range(5))


def files(folder: Path, log: str | bytes = GOOD, items: str | bytes = ITEMS) -> dict[str, str]:
    for name, content in (("log.csv", log), ("items.csv", items)):
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return {"interactions": str(folder / "log.csv"), "items": str(folder / "items.csv")}


CASES: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "empty log": ({"log": ""}, {}, r"log.csv is empty"),
    "header alone": ({"log": HEAD}, {}, r"data.interactions=.*log.csv has no rows"),
    "empty items": ({"items": "item_id,title\n"}, {}, r"items.csv has no rows"),
    "missing column": (
        {"log": GOOD.replace("timestamp", "timestmp")},
        {},
        r"log.csv has no column 'timestamp' \(did you mean 'timestmp'\?.*set data.columns.timestamp",
    ),
    "missing title": ({"items": "item_id,x\n1,A\n"}, {}, r"items.csv has no column 'title'"),
    "two that could be meant": (
        {"log": GOOD.replace("user_id", "userId").replace("rating", "user")},
        {},
        r"'userId' and 'user' could be user_id: set data.columns.user_id",
    ),
    "min_rating without ratings": (
        {"log": GOOD.replace("rating", "stars")},
        {"min_rating": 3},
        r"prepare.min_rating=3 needs a rating.*'rating'.*set data.columns.rating",
    ),
    "text as time": (
        {"log": GOOD + "1,1,4,May 2021\n"},
        {},
        r"log.csv: row 21 has timestamp 'May 2021': give Unix seconds",
    ),
    "no time": ({"log": GOOD + "1,1,4,\n"}, {}, r"log.csv: row 21 has no timestamp"),
    "NaN time": ({"log": GOOD + "1,1,4,nan\n"}, {}, r"row 21 has timestamp nan"),
    "text as rating": ({"log": GOOD + "1,1,good,5\n"}, {}, r"row 21 has rating 'good': give a number"),
    "NaN rating": ({"log": GOOD + "1,1,NaN,5\n"}, {}, r"row 21 has rating nan"),
    "infinite rating": ({"log": GOOD + "1,1,-inf,5\n"}, {}, r"row 21 has rating -inf"),
    "no user": ({"log": GOOD + ",1,4,5\n"}, {}, r"log.csv: row 21 has no 'user_id'"),
    "no item": ({"log": GOOD + "1, ,4,5\n"}, {}, r"log.csv: row 21 has no 'item_id'"),
    "ragged row": ({"log": GOOD + "1,1,4\n"}, {}, r"log.csv cannot be read as csv: .*Expected 4 columns, got 3"),
    "latin-1": ({"items": ITEMS.replace("Title 1", "Amélie").encode("latin-1")}, {}, r"items.csv is not UTF-8 text"),
    "latin-1 in the log": ({"log": (GOOD + "é,1,4,5\n").encode("latin-1")}, {}, r"log.csv is not UTF-8 text"),
    "duplicate item": ({"items": ITEMS + "3,Other\n"}, {}, r"items.csv.*item_id '3' occurs 2 times"),
    "empty title": ({"items": ITEMS + '9,"  "\n'}, {}, r"items.csv: row 6 has an empty title"),
    "missing title text": ({"items": ITEMS + "9,\n"}, {}, r"items.csv: row 6 has an empty title"),
    "unknown items": (
        {"log": GOOD + "1,77,4,5\n2,77,4,5\n2,88,4,6\n"},
        {},
        r"3 interactions name 2 items that data.items does not list \('77', '88'\)",
    ),
    "two items, one title": (
        {"items": ITEMS.replace("Title 3", "TITLE  1")},
        {"k_core": 1, "duplicate_titles": "refuse"},
        r"items 1 \('Title 1'\) and 3 \('TITLE 1'\) have one title.*disambiguate",
    ),
    "nothing positive": (
        {},
        {"min_rating": 5},
        r"nothing is left of 20 interactions \(20 rated below 5\): lower prepare.min_rating",
    ),
    "nothing in the core": (
        {"log": GOOD + "1,1,1,9\n"},
        {"k_core": 9, "min_rating": 3},
        r"nothing is left of 21 interactions \(1 rated below 3; 20 outside the 9-core of users and items\)",
    ),
    "no example to train on": (
        {},
        {"k_core": 1, "min_history": 4},
        r"prepare.split=leave_one_out leaves no train example \(train 0, validation 0, test 4\)",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_fault_in_text_files_is_one_sentence(tmp_path: Path, name: str) -> None:
    content, prepare, message = CASES[name]
    with pytest.raises(UserError, match=message) as caught:
        inspect_data(config_for(files(tmp_path, **content), **{"k_core": 1, **prepare}))
    assert "\n" not in str(caught.value)


def test_the_good_files_are_good(tmp_path: Path) -> None:
    assert inspect_data(config_for(files(tmp_path), k_core=1))["examples"]["test"] == 4


def test_unused_items_may_share_a_title(tmp_path: Path) -> None:
    data = files(tmp_path, items=ITEMS + "8,Title 1\n9,Title 1\n")
    assert inspect_data(config_for(data, k_core=1))["items"] == 5


def test_disambiguation_is_counted(tmp_path: Path) -> None:
    data = files(tmp_path, items=ITEMS.replace("Title 3", "title 1"))
    assert inspect_data(config_for(data, k_core=1, duplicate_titles="disambiguate"))["titles_disambiguated"] == 1


def broken_parquet(folder: Path) -> None:
    (folder / "interactions.parquet").write_bytes(b"PAR1 not really")


def column_as(name: str, values: pa.Array) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        table = pq.read_table(folder / "interactions.parquet")
        place = table.column_names.index(name)
        pq.write_table(table.set_column(place, name, values), folder / "interactions.parquet")

    return write


PARQUET: dict[str, tuple[Callable[[Path], None], str]] = {
    "unreadable": (broken_parquet, r"interactions.parquet cannot be read as parquet"),
    "float ids": (column_as("user_id", pa.array([1.5] * 20)), r"'user_id' is double: ids must be integers or text"),
    "null ids": (column_as("item_id", pa.nulls(20, pa.int64())), r"row 1 has no 'item_id'"),
    "boolean times": (column_as("timestamp", pa.array([True] * 20)), r"'timestamp' is bool: give Unix seconds"),
    "listed ratings": (column_as("rating", pa.array([[1.0]] * 20)), r"'rating' is list.*: give a number"),
    "NaN rating": (column_as("rating", pa.array([1.0] * 19 + [float("nan")])), r"row 20 has rating nan"),
}


@pytest.mark.parametrize("name", PARQUET)
def test_a_fault_in_parquet_is_one_sentence(tmp_path: Path, name: str) -> None:
    rows = [(user, item, 4.0, float(item)) for user in range(4) for item in range(5)]
    data = write_data(tmp_path, rows, {item: f"t{item}" for item in range(5)})
    PARQUET[name][0](tmp_path)
    with pytest.raises(UserError, match=PARQUET[name][1]):
        inspect_data(config_for(data, k_core=1))


def test_places_that_hold_no_data(tmp_path: Path) -> None:
    good = files(tmp_path)
    (tmp_path / "notes.xyz").write_text("?")
    (tmp_path / "empty").mkdir()
    (tmp_path / "mixed").mkdir()
    (tmp_path / "mixed" / "a.csv").write_text(GOOD)
    (tmp_path / "mixed" / "b.tsv").write_text(GOOD)
    for place, message in {
        "none.csv": r"data.interactions=.*none.csv does not exist",
        "none*.csv": r"does not exist or holds no file",
        "empty": r"does not exist or holds no file",
        "notes.xyz": r"an ending that tells no format.*set data.format",
        "mixed": r"files of several formats \(csv, tsv\)",
    }.items():
        with pytest.raises(UserError, match=message):
            inspect_data(config_for({**good, "interactions": str(tmp_path / place)}))
    with pytest.raises(UserError, match=r"data.interactions is not set"):
        inspect_data(config_for({}))


def test_malformed_json_lines_name_the_file(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"user_id": 1, "item_id": 2, "timestamp": 3}\n{"user_id": \n')
    (tmp_path / "empty.jsonl").write_text("")
    for name, message in {"log": r"log.jsonl cannot be read as jsonl", "empty": r"empty.jsonl is empty"}.items():
        data = {**files(tmp_path), "interactions": str(tmp_path / f"{name}.jsonl")}
        with pytest.raises(UserError, match=message):
            inspect_data(config_for(data))


def test_a_dat_file_of_another_shape_names_its_first_row(tmp_path: Path) -> None:
    (tmp_path / "ratings.dat").write_text("1\t2\t3\t4\n")
    data = {**files(tmp_path), "interactions": str(tmp_path / "ratings.dat")}
    with pytest.raises(UserError, match=r"ratings.dat: row 1 is not user_id::item_id::rating::timestamp"):
        inspect_data(config_for(data))


@pytest.mark.usefixtures("ray_cluster")
def test_a_fault_found_by_a_ray_task_is_the_same_sentence(tmp_path: Path) -> None:
    config = config_for(files(tmp_path, log=GOOD + "1,1,4,May 2021\n"), k_core=1)
    with pytest.raises(UserError, match=r"log.csv: row 21 has timestamp 'May 2021': give Unix seconds"):
        RayBlocks(plan_reading(config.data, "interactions"), Progress("reading", None)).scanned(None)
