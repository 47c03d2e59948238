from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rosepo.config import DataConfig
from rosepo.data.readers import formats
from rosepo.data.readers.columns import codes, integers_if_all
from rosepo.data.readers.interactions import plan_reading, read_items
from rosepo.utils.errors import UserError
from tests.data.tables import SHARED, all_interactions, config_for

INTERACTIONS = [(1, 10, 4.0, 100.0), (1, 20, 3.5, 200.0), (2, 10, 5.0, 150.0)]
ITEMS = [(10, "Élan (1999)", ["Drama", "War"]), (20, 'Say: "Hi", again', None)]


def write_csv(
    folder: Path, delimiter: str = ",", names: tuple[str, ...] = ("user_id", "item_id", "rating", "timestamp")
) -> dict[str, str]:
    ending = {",": "csv", "\t": "tsv", ";": "csv"}[delimiter]
    lines = [delimiter.join(names)] + [delimiter.join(str(value) for value in row) for row in INTERACTIONS]
    (folder / f"log.{ending}").write_text("\n".join(lines) + "\n", encoding="utf-8")
    title = '"Say: ""Hi"", again"'
    rows = [f"10{delimiter}Élan (1999){delimiter}Drama|War", f"20{delimiter}{title}{delimiter}(no genres listed)"]
    (folder / f"things.{ending}").write_text(
        delimiter.join((names[1], "title", "genres")) + "\n" + "\n".join(rows) + "\n", encoding="utf-8"
    )
    return {"interactions": str(folder / f"log.{ending}"), "items": str(folder / f"things.{ending}")}


def write_parquet(folder: Path) -> dict[str, str]:
    user, item, rating, time = zip(*INTERACTIONS)
    table = pa.table(
        {
            "user_id": pa.array(user, pa.int32()),
            "item_id": pa.array(item, pa.uint16()),
            "rating": pa.array(rating, pa.float32()),
            "timestamp": pa.array([int(t) for t in time], pa.int64()),
        }
    )
    pq.write_table(table, folder / "log.parquet", row_group_size=2)
    ids, titles, categories = zip(*ITEMS)
    pq.write_table(
        pa.table(
            {
                "item_id": ids,
                "title": pa.array(titles).dictionary_encode(),
                "categories": pa.array(categories, pa.large_list(pa.string())),
            }
        ),
        folder / "items.parquet",
    )
    return {"interactions": str(folder / "log.parquet"), "items": str(folder / "items.parquet")}


def write_jsonl(folder: Path) -> dict[str, str]:
    keys = ("user_id", "item_id", "rating", "timestamp")
    (folder / "log.jsonl").write_text("".join(json.dumps(dict(zip(keys, row))) + "\n" for row in INTERACTIONS))
    keys = ("item_id", "title", "categories")
    (folder / "items.jsonl").write_text("".join(json.dumps(dict(zip(keys, row))) + "\n" for row in ITEMS))
    return {"interactions": str(folder / "log.jsonl"), "items": str(folder / "items.jsonl")}


def write_dat(folder: Path, encoding: str = "utf-8") -> dict[str, str]:
    (folder / "ratings.dat").write_text("".join("::".join(str(v) for v in row) + "\n" for row in INTERACTIONS))
    (folder / "movies.dat").write_bytes(
        '10::Élan (1999)::Drama|War\n20::Say: "Hi", again::(no genres listed)\n'.encode(encoding)
    )
    return {"interactions": str(folder / "ratings.dat"), "items": str(folder / "movies.dat")}


def write_recbole(folder: Path) -> dict[str, str]:
    head = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
    (folder / "d.inter").write_text(head + "".join("\t".join(str(v) for v in row) + "\n" for row in INTERACTIONS))
    (folder / "d.item").write_text(
        'item_id:token\tmovie_title:token_seq\tclass:token_seq\n10\tÉlan (1999)\tDrama War\n20\tSay: "Hi", again\t\n',
        encoding="utf-8",
    )
    return {"interactions": str(folder / "d.inter"), "items": str(folder / "d.item")}


WRITERS = {
    "csv": write_csv,
    "semicolons": lambda folder: write_csv(folder, ";"),
    "tsv": lambda folder: write_csv(folder, "\t"),
    "movielens csv": lambda folder: write_csv(folder, ",", ("userId", "movieId", "rating", "timestamp")),
    "parquet": write_parquet,
    "jsonl": write_jsonl,
    "dat": write_dat,
    "dat in latin-1": lambda folder: write_dat(folder, "latin-1"),
    "recbole": write_recbole,
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    config = config_for(WRITERS[name](tmp_path))
    rows = [
        (int(row["user_id"]), int(row["item_id"]), row["rating"], row["timestamp"])
        for row in all_interactions(config).to_pylist()
    ]
    assert rows == INTERACTIONS
    assert [tuple(row.values()) for row in read_items(config.data).to_pylist()] == ITEMS


def test_ids_that_are_text_stay_text_and_numbers_become_numbers(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("item_id,title\n70,A\n8,B\n")
    (tmp_path / "b.csv").write_text("item_id,title\nB07,A\n8,B\n")
    (tmp_path / "c.csv").write_text("item_id,title\n7,A\n007,B\n")
    (tmp_path / "d.csv").write_text("item_id,title\n007,A\n8,B\n")
    for name, ids in {"a": [8, 70], "b": ["8", "B07"], "c": ["007", "7"], "d": ["007", "8"]}.items():
        data = DataConfig(interactions="none", items=str(tmp_path / f"{name}.csv"))
        assert read_items(data)["item_id"].to_pylist() == ids


@pytest.mark.parametrize("item", [1234567890123456789, 2**63 - 1, -(2**63), -7, 0])
def test_integers_of_64_bits_are_found_as_text_and_as_numbers(item: int) -> None:
    known = pa.array([item])
    assert codes(pa.array([str(item), "x"]), known).tolist() == [0, -1]
    assert codes(known, pa.array([str(item)])).tolist() == [0]
    assert integers_if_all(pa.array([str(item)])).to_pylist() == [item]


def test_text_that_is_another_way_to_write_an_integer_is_another_id() -> None:
    written = pa.array(["007", "7", "+7", "-0", "7.0", str(7 + 2**64), None])
    assert codes(written, pa.array([0, 7])).tolist() == [-1, 1, -1, -1, -1, -1, -1]
    for text in ("007", "+7", "-0", "7.0", str(2**63)):
        assert integers_if_all(pa.array(["8", text])).to_pylist() == ["8", text]


def test_long_ids_join_items_in_parquet_with_interactions_in_csv(tmp_path: Path) -> None:
    item = 1234567890123456789
    pq.write_table(pa.table({"item_id": [item], "title": ["A"]}), tmp_path / "items.parquet")
    (tmp_path / "log.csv").write_text(f"user_id,item_id,timestamp\n1,{item},1\n")
    config = config_for({"interactions": str(tmp_path / "log.csv"), "items": str(tmp_path / "items.parquet")})
    known = read_items(config.data)["item_id"].combine_chunks()
    assert np.array_equal(codes(all_interactions(config)["item_id"], known), [0])


def test_columns_are_mapped_by_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("who,what,when,stars\nann,x,5,1\n")
    (tmp_path / "items.csv").write_text("what,label\nx,Title\n")
    config = config_for(
        {
            "interactions": str(tmp_path / "log.csv"),
            "items": str(tmp_path / "items.csv"),
            "columns": {"user_id": "who", "item_id": "what", "timestamp": "when", "rating": "stars", "title": "label"},
        }
    )
    assert all_interactions(config).to_pylist() == [{"user_id": "ann", "item_id": "x", "rating": 1.0, "timestamp": 5.0}]
    assert read_items(config.data)["title"].to_pylist() == ["Title"]


def test_folders_globs_urls_and_compressed_files(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    folder.mkdir()
    for number in range(3):
        text = f"user_id,item_id,timestamp\n{number},10,{number}\n"
        (folder / f"part-{number}.csv.gz").write_bytes(gzip.compress(text.encode()))
    (folder / "_SUCCESS").write_text("")
    (folder / ".hidden.csv").write_text("nonsense")
    (tmp_path / "items.csv").write_text("item_id,title\n10,A\n")
    base = {"items": str(tmp_path / "items.csv")}
    places = (str(folder), str(folder / "part-*.csv.gz"), f"file://{folder}", f"file://{folder}/part-*.csv.gz")
    for place in places:
        config = config_for({**base, "interactions": place})
        assert sorted(all_interactions(config)["user_id"].to_pylist()) == ["0", "1", "2"], place


def test_a_scheme_that_only_fsspec_knows(tmp_path: Path) -> None:
    import fsspec

    with fsspec.open("memory://bucket/log.csv", "w") as file:
        file.write("user_id,item_id,timestamp\n1,2,3\n")
    data = DataConfig(interactions="memory://bucket/log.csv", items="none")
    assert plan_reading(data, "interactions").files[0][1].names == ("user_id", "item_id", "timestamp")


def test_real_timestamps_become_unix_seconds(tmp_path: Path) -> None:
    times = pa.array([1_500_000_000_250, 1_600_000_000_000], pa.timestamp("ms", tz="UTC"))
    pq.write_table(pa.table({"user_id": ["a", "b"], "item_id": [1, 2], "timestamp": times}), tmp_path / "log.parquet")
    config = config_for({"interactions": str(tmp_path / "log.parquet"), "items": "none"})
    assert all_interactions(config)["timestamp"].to_pylist() == [1_500_000_000.25, 1_600_000_000.0]


def test_a_rating_in_float32_compares_as_the_decimal_it_stands_for(tmp_path: Path) -> None:
    ratings = pa.array([4.1, 2.3], pa.float32())
    pq.write_table(
        pa.table({"user_id": [1, 2], "item_id": [1, 2], "rating": ratings, "timestamp": [1, 2]}), tmp_path / "l.parquet"
    )
    config = config_for({"interactions": str(tmp_path / "l.parquet"), "items": "none"})
    assert all_interactions(config)["rating"].to_pylist() == [4.1, 2.3]


def test_titles_lose_surplus_white_space_and_may_hold_the_separator(tmp_path: Path) -> None:
    (tmp_path / "movies.dat").write_text("1::  A::B\t C ::Drama\n")
    data = DataConfig(interactions="none", items=str(tmp_path / "movies.dat"))
    assert read_items(data)["title"].to_pylist() == ["A::B C"]


@pytest.mark.parametrize("mark", ["\x85", "\u2028", "\x0b", "\x1c"])
def test_only_line_feeds_part_the_lines_of_dat_files(tmp_path: Path, mark: str) -> None:
    (tmp_path / "movies.dat").write_bytes(f"1::A{mark}B::Drama\r\n2::C::War\n".encode())
    data = DataConfig(interactions="none", items=str(tmp_path / "movies.dat"))
    found = read_items(data).to_pylist()
    assert [row["item_id"] for row in found] == [1, 2]
    assert found[0]["title"].split("A")[1].endswith("B")
    assert found[0]["categories"] == ["Drama"]


def test_a_quote_in_a_tsv_title_swallows_no_rows(tmp_path: Path) -> None:
    titles = ['"Heat', "Ronin", 'x" y', '"Weird" Al', "Up"]
    rows = "".join(f"{number}\t{title}\tDrama\n" for number, title in enumerate(titles))
    (tmp_path / "items.tsv").write_text("item_id\ttitle\tgenres\n" + rows)
    data = DataConfig(interactions="none", items=str(tmp_path / "items.tsv"))
    assert read_items(data)["title"].to_pylist() == titles


def test_tsv_fields_that_pandas_quoted_lose_their_quotes(tmp_path: Path) -> None:
    titles = ['He said "hi"', '"Rome", open city', 'one " alone', "plain", '"whole"']
    frame = pa.table({"item_id": list(range(5)), "title": titles}).to_pandas()
    for name, quoting in {"minimal": csv.QUOTE_MINIMAL, "all": csv.QUOTE_ALL}.items():
        frame.to_csv(tmp_path / f"{name}.tsv", sep="\t", index=False, quoting=quoting)
        data = DataConfig(interactions="none", items=str(tmp_path / f"{name}.tsv"))
        assert read_items(data)["title"].to_pylist() == titles
        assert read_items(data)["item_id"].to_pylist() == list(range(5))


def test_a_tab_or_a_line_feed_inside_a_tsv_field_is_refused(tmp_path: Path) -> None:
    for number, title in enumerate(('"a\tb"', '"a\nb"')):
        (tmp_path / f"{number}.tsv").write_text(f"item_id\ttitle\tgenres\n1\t{title}\tDrama\n2\tc\tWar\n")
        with pytest.raises(UserError, match=rf"{number}.tsv cannot be read as tsv: .*Expected 3 columns"):
            read_items(DataConfig(interactions="none", items=str(tmp_path / f"{number}.tsv")))


def _json_lines(path: Path, rows: list[dict[str, object]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_json_lines_may_change_kind_of_number_and_gain_keys_after_a_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "BLOCK_BYTES", 256)
    rows: list[dict[str, object]] = [
        {"user_id": 1, "item_id": "2020-01-01", "rating": 5, "timestamp": number} for number in range(20)
    ]
    rows += [{"user_id": 2, "item_id": "x", "rating": 4.5, "timestamp": 20.25, "new": {"a": [1]}}]
    rows += [{"user_id": 3, "item_id": "x", "timestamp": 21}]
    path = _json_lines(tmp_path / "log.jsonl", rows)
    found = all_interactions(config_for({"interactions": path, "items": "none"})).to_pylist()
    assert found == [
        {
            "user_id": row["user_id"],
            "item_id": row["item_id"],
            "rating": row.get("rating"),
            "timestamp": row["timestamp"],
        }
        for row in rows
    ]


def test_json_lines_may_begin_with_a_block_of_nulls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "BLOCK_BYTES", 256)
    rows: list[dict[str, object]] = [
        {"user_id": 1, "item_id": number, "rating": None, "timestamp": number} for number in range(20)
    ]
    path = _json_lines(tmp_path / "log.jsonl", [*rows, {"user_id": 1, "item_id": 20, "rating": 4.5, "timestamp": 20}])
    config = config_for({"interactions": path, "items": "none"})
    assert all_interactions(config)["rating"].to_pylist() == [None] * 20 + [4.5]
    for empty, value, wanted in ((None, "Drama|War", ["Drama", "War"]), ([], ["Drama"], ["Drama"])):
        items = [{"item_id": n, "title": f"t{n}", "categories": empty} for n in range(20)]
        path = _json_lines(tmp_path / "items.jsonl", [*items, {"item_id": 20, "title": "t20", "categories": value}])
        found = read_items(DataConfig(interactions="none", items=path))["categories"].to_pylist()
        assert found == [None] * 20 + [wanted]


def test_json_lines_whose_ids_turn_into_text_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "BLOCK_BYTES", 256)
    rows: list[dict[str, object]] = [{"user_id": 1, "item_id": number, "timestamp": number} for number in range(20)]
    path = _json_lines(tmp_path / "log.jsonl", [*rows, {"user_id": "a", "item_id": 1, "timestamp": 1}])
    with pytest.raises(UserError, match=r"log.jsonl cannot be read as jsonl: .*user_id.*changed from number to string"):
        all_interactions(config_for({"interactions": path, "items": "none"}))


def test_embedded_data_has_its_documented_size() -> None:
    config = config_for({"dataset": "movietweetings-100k"})
    table = all_interactions(config)
    assert (table.num_rows, len(table["user_id"].unique())) == (100_000, 16_554)
    assert read_items(config.data).num_rows == 10_506


@pytest.mark.skipif(not SHARED.exists(), reason="the raw files are not on this machine")
@pytest.mark.parametrize(
    ("folder", "interactions", "items", "rows", "n_items"),
    [
        ("movietweetings-100k", "raw/ratings.dat", "raw/movies.dat", 100_000, 10_506),
        ("movietweetings-100k", "interactions.parquet", "items.parquet", 100_000, 10_506),
        ("ml-latest-small-2016", "raw/ratings.csv", "raw/movies.csv", 100_004, 9_125),
        ("ml-latest-small-2016", "interactions.parquet", "items.parquet", 100_004, 9_125),
    ],
)
def test_real_files_read_whole(folder: str, interactions: str, items: str, rows: int, n_items: int) -> None:
    root = SHARED / folder
    config = config_for({"interactions": str(root / interactions), "items": str(root / items)})
    assert all_interactions(config).num_rows == rows
    assert read_items(config.data).num_rows == n_items


@pytest.mark.skipif(not SHARED.exists(), reason="the raw files are not on this machine")
@pytest.mark.parametrize(
    ("folder", "raw"),
    [
        ("movietweetings-100k", ("raw/ratings.dat", "raw/movies.dat")),
        ("ml-latest-small-2016", ("raw/ratings.csv", "raw/movies.csv")),
    ],
)
def test_raw_files_and_their_parquet_form_hold_the_same(folder: str, raw: tuple[str, str]) -> None:
    root = SHARED / folder
    found = []
    for interactions, items in (raw, ("interactions.parquet", "items.parquet")):
        config = config_for({"interactions": str(root / interactions), "items": str(root / items)})
        table = all_interactions(config).to_pandas()
        table = table.astype({"user_id": "int64", "item_id": "int64"}).sort_values(["user_id", "item_id", "timestamp"])
        found.append((table.reset_index(drop=True), read_items(config.data)))
    assert found[0][0].equals(found[1][0])
    assert found[0][1]["title"].equals(found[1][1]["title"])
