"""Files as people have them: mixed encodings, times in any form, keys that nobody reads, wrong line ends."""

from __future__ import annotations

import csv
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rosepo.data.prepare.prepare import inspect_data
from rosepo.data.readers.interactions import read_items
from rosepo.data.readers.times import times
from rosepo.utils.errors import UserError
from tests.data.tables import config_for

ITEMS = [(item, f"Café {item}") for item in range(5)]
KEYS = ("user_id", "item_id", "rating", "timestamp")
LOG = [(user, item, 4.0, 1_600_000_000 + 60 * item) for user in range(4) for item in range(5)]


def written(folder: Path, kind: str, log: list[tuple[Any, ...]] = LOG, mark: bytes = b"") -> dict[str, str]:
    """A log and its items in one of the text formats, each behind `mark`."""
    for name, keys, rows in (("log", KEYS, log), ("items", ("item_id", "title"), ITEMS)):
        if kind == "jsonl":
            text = "".join(json.dumps(dict(zip(keys, row))) + "\n" for row in rows)
        elif kind == "dat":
            text = "".join(
                "::".join(map(str, (*row, "Drama")[:4] if name == "log" else (*row, "Drama"))) + "\n" for row in rows
            )
        else:
            between = "," if kind == "csv" else "\t"
            text = "".join(between.join(map(str, row)) + "\n" for row in [keys, *rows])
        (folder / f"{name}.{kind}").write_bytes(mark + text.encode())
    return {"interactions": str(folder / f"log.{kind}"), "items": str(folder / f"items.{kind}")}


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "dat"])
def test_a_byte_order_mark_is_passed_over(kind: str, tmp_path: Path) -> None:
    plain = inspect_data(config_for(written(tmp_path, kind), k_core=1))
    data = written(tmp_path, kind, mark="\ufeff".encode())
    assert inspect_data(config_for(data, k_core=1))["examples"] == plain["examples"]
    assert read_items(config_for(data).data)["title"].to_pylist() == [title for _, title in ITEMS]


def test_a_line_in_latin_1_leaves_the_others_as_they_are(tmp_path: Path) -> None:
    data = written(tmp_path, "dat")
    lines = Path(data["items"]).read_bytes().split(b"\n")
    lines[3] = lines[3].decode().encode("latin-1")
    Path(data["items"]).write_bytes(b"\n".join(lines))
    assert read_items(config_for(data).data)["title"].to_pylist() == [title for _, title in ITEMS]


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
def test_a_column_that_stands_in_the_path_alone_is_read_from_there(kind: str, tmp_path: Path) -> None:
    data = written(tmp_path, "csv")
    plain = inspect_data(config_for(data, k_core=1))
    for user in {row[0] for row in LOG}:
        rows = [dict(zip(KEYS[1:], row[1:])) for row in LOG if row[0] == user]
        folder = tmp_path / "hive" / "site=a%20b" / f"user_id={user}"
        folder.mkdir(parents=True)
        if kind == "parquet":
            pq.write_table(pa.Table.from_pylist(rows), folder / "part-0.parquet")
        elif kind == "csv":
            lines = [KEYS[1:], *(row.values() for row in rows)]
            (folder / "part.csv").write_text("".join(",".join(map(str, line)) + "\n" for line in lines))
        else:
            (folder / "part.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    hive = {**data, "interactions": str(tmp_path / "hive")}
    assert inspect_data(config_for(hive, k_core=1))["examples"] == plain["examples"]
    with pytest.raises(UserError, match=r"'nobody'.*item_id, rating, timestamp, site, user_id"):
        inspect_data(config_for({**hive, "columns": {"user_id": "nobody"}}, k_core=1))


def test_a_key_without_a_value_is_a_row_without_one(tmp_path: Path) -> None:
    data = written(tmp_path, "csv")
    folder = tmp_path / "hive" / "user_id=__HIVE_DEFAULT_PARTITION__"
    folder.mkdir(parents=True)
    (folder / "part.csv").write_text("item_id,rating,timestamp\n1,4,1600000000\n")
    with pytest.raises(UserError, match="user_id"):
        inspect_data(config_for({**data, "interactions": str(tmp_path / "hive")}, k_core=1))


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl"])
@pytest.mark.parametrize("form", ["{:%Y-%m-%dT%H:%M:%S}.123", "{:%Y-%m-%d %H:%M:%S}Z", "{:%Y-%m-%dT%H:%M:%S}+00:00"])
def test_iso_times_are_times_in_every_format(kind: str, form: str, tmp_path: Path) -> None:
    plain = inspect_data(config_for(written(tmp_path, kind), k_core=1))
    whole = "{:%Y-%m-%dT%H:%M:%S}"
    moments = [datetime.fromtimestamp(row[3], UTC) for row in LOG]
    log = [(*row[:3], (form if place % 3 else whole).format(moments[place])) for place, row in enumerate(LOG)]
    assert inspect_data(config_for(written(tmp_path, kind, log), k_core=1))["examples"] == plain["examples"]


@given(
    st.datetimes(datetime(1980, 1, 1), datetime(2100, 1, 1)),
    st.sampled_from(["", "Z", "+00", "+0530", "-03:30", "+14:00"]),
    st.sampled_from(["seconds", "milliseconds", "microseconds", "minutes"]),
)
def test_a_time_is_the_moment_that_pythons_parser_gives(moment: datetime, zone: str, precision: str) -> None:
    text = moment.isoformat(timespec=precision) + zone
    parsed = datetime.fromisoformat(text)
    expected = (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp()
    (found,) = times(pa.chunked_array([[text]]), "timestamp", "log", 1).to_pylist()
    assert found == pytest.approx(expected, abs=1e-5)


def test_seconds_and_milliseconds_in_one_log_are_told(tmp_path: Path) -> None:
    log = [(*row[:3], row[3] * (1000 if place % 2 else 1)) for place, row in enumerate(LOG)]
    with pytest.raises(UserError, match=r"times run from 1600000000 to .* span 50,\d\d\d years: .*milliseconds"):
        inspect_data(config_for(written(tmp_path, "csv", log), k_core=1))


def test_keys_of_json_that_nobody_reads_may_be_anything(tmp_path: Path) -> None:
    data = written(tmp_path, "jsonl")
    plain = inspect_data(config_for(data, k_core=1))
    odd: list[Any] = ["$1.00", 1.0, None, {"a": [1]}, [1, "x"]]
    lines = Path(data["interactions"]).read_text().splitlines()
    rows = [{**json.loads(line), "price": odd[place % 5]} for place, line in enumerate(lines)]
    Path(data["interactions"]).write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert inspect_data(config_for(data, k_core=1))["examples"] == plain["examples"]


FAULTS: dict[str, tuple[str, bytes, str]] = {
    "an archive": ("log.zip", b"PK\x03\x04", r"log.zip is an archive: unpack it"),
    "UTF-16": ("log.csv", "user_id,item_id\n1,2\n".encode("utf-16"), r"is UTF-16 text: convert it, `iconv -f utf-16"),
    "carriage returns": ("log.csv", b"user_id,item_id,timestamp\r1,2,3\r", r"carriage returns alone: convert it, `tr"),
    "spaces": ("log.inter", b"user_id:token item_id:token timestamp:float\n1 2 3\n", r"spaces stand between .* tabs"),
    "no header": ("log.csv", b"1,21,3,1600001575\n1,37,3,1600002651\n", r"first line looks like data: put a line with"),
    "a JSON array": ("log.json", b'[{"user_id": 1}]', r"log.json is a JSON array: write each of its objects on a line"),
    "Python": ("log.jsonl", b"{'user_id': 1}\n", r"row 1 is a Python literal, not JSON"),
    "no object": ("log.jsonl", b'{"user_id": 1}\n3\n', r"row 2 is 3, no JSON object"),
    "an id beyond 64 bits": (
        "log.jsonl",
        b'{"user_id": 18446744073709551615, "item_id": 1, "timestamp": 1}\n',
        r"64-bit",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_file_of_another_kind_is_named_with_what_helps(name: str, tmp_path: Path) -> None:
    data = written(tmp_path, "csv")
    file, content, message = FAULTS[name]
    (tmp_path / file).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        inspect_data(config_for({**data, "interactions": str(tmp_path / file)}, k_core=1))
    assert "\n" not in str(caught.value)


def test_a_column_for_two_fields_or_two_columns_of_a_name_are_refused(tmp_path: Path) -> None:
    data = written(tmp_path, "csv")
    with pytest.raises(UserError, match=r"column 'timestamp' cannot be both rating and timestamp: set data.columns"):
        inspect_data(config_for({**data, "columns": {"rating": "timestamp"}}, k_core=1))
    twice = pa.table([[1], [1], [1.0], [2.0]], names=["user_id", "item_id", "timestamp", "timestamp"])
    pq.write_table(twice, tmp_path / "twin.parquet")
    with pytest.raises(UserError, match=r"twin.parquet: two columns are named 'timestamp': rename one"):
        inspect_data(config_for({**data, "interactions": str(tmp_path / "twin.parquet")}, k_core=1))


def test_a_header_of_any_width_is_read_and_messages_stay_short(tmp_path: Path) -> None:
    data = written(tmp_path, "csv")
    more = [f"genre_{number:06d}_of_something_long" for number in range(3000)]
    with Path(data["items"]).open("w", newline="") as file:
        csv.writer(file).writerows([("item_id", "title", *more), *((*row, *[0] * len(more)) for row in ITEMS)])
    assert inspect_data(config_for(data, k_core=1))["items"] == 5
    with pytest.raises(UserError, match=r"no column 'name' .* and 2,982 more\)") as caught:
        inspect_data(config_for({**data, "columns": {"title": "name"}}, k_core=1))
    assert len(str(caught.value)) < 1500
