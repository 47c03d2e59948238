from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rosepo.config import DataConfig, load_config
from rosepo.data.prepare.prepare import inspect_data
from rosepo.data.readers.interactions import plan_reading, read_items
from rosepo.utils.errors import UserError
from tests.data.tables import config_for

YEARS = {"Heat": 1995, "Up": 2009}


def write(folder: Path, items: str, ending: str = "csv") -> dict[str, str]:
    log = [f"{user},{item},3,{user + item}" for user in range(4) for item in range(4)]
    (folder / "log.csv").write_text("user_id,item_id,rating,timestamp\n" + "\n".join(log) + "\n")
    (folder / f"items.{ending}").write_text(items)
    return {"interactions": str(folder / "log.csv"), "items": str(folder / f"items.{ending}")}


def titles(data: dict[str, str], title: str) -> list[str]:
    config = DataConfig.model_validate({**data, "columns": {"title": title}})
    return read_items(config)["title"].to_pylist()


CSV = "item_id,movie_title,release_year,genres\n0,Heat,1995,Crime\n1,Heat,1986,Crime\n2,Up,,\n3,Us,2019,Horror\n"
JSON = "\n".join(
    f'{{"item_id": {n}, "movie_title": "{title}", "release_year": {year}, "genres": "x"}}'
    for n, (title, year) in enumerate([("Heat", "1995"), ("Heat", "1986"), ("Up", "null"), ("Us", "2019")])
)


@pytest.mark.parametrize(("items", "ending"), [(CSV, "csv"), (JSON, "jsonl")])
def test_a_title_of_two_columns_leaves_out_what_is_missing(tmp_path: Path, items: str, ending: str) -> None:
    found = titles(write(tmp_path, items, ending), "{movie_title} ({release_year})")
    assert found == ["Heat (1995)", "Heat (1986)", "Up", "Us (2019)"]


def test_years_that_pandas_stored_as_floats_are_years_and_a_column_may_serve_twice(tmp_path: Path) -> None:
    data = write(tmp_path, CSV)
    table = pa.table(
        {"item_id": [0, 1], "name": ["Heat", "Up"], "year": pa.array([1995.0, None]), "genres": ["Crime", "Animation"]}
    )
    pq.write_table(table, tmp_path / "items.parquet")
    data["items"] = str(tmp_path / "items.parquet")
    assert titles(data, "{name} ({year}) - {genres}") == ["Heat (1995) - Crime", "Up - Animation"]


@pytest.mark.parametrize(
    ("title", "told"),
    [
        ("{movie_titel}", "no column 'movie_titel' .did you mean 'movie_title'"),
        ("{movie_title", "data.columns.title=.*in braces"),
        ("{}", "braces hold the name of a column and nothing else"),
        ("{movie_title!r}", "braces hold the name of a column and nothing else"),
    ],
)
def test_a_template_that_cannot_be_filled_is_refused(tmp_path: Path, title: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        titles(write(tmp_path, CSV), title)


def inspect(data: dict[str, str], **columns: Any) -> dict[str, Any]:
    return inspect_data(config_for({**data, "columns": columns}, k_core=1))


def test_the_refusal_of_equal_titles_names_the_column_that_tells_them_apart(tmp_path: Path) -> None:
    data = write(tmp_path, CSV)
    with pytest.raises(UserError, match=r'data\.columns\.title="\{movie_title\} \(\{release_year\}\)"'):
        inspect(data)
    assert inspect(data, title="{movie_title} ({release_year})")["titles_disambiguated"] == 0


def test_no_column_is_named_where_none_would_help(tmp_path: Path) -> None:
    data = write(tmp_path, "item_id,title,place\n0,Heat,1\n1,Heat,1\n2,Up,2\n3,Us,3\n")
    assert inspect(data)["titles_disambiguated"] == 1
    with pytest.raises(UserError, match=r"tells them apart$"):
        inspect_data(config_for(data, k_core=1, duplicate_titles="refuse"))


def test_links_and_identifiers_are_no_part_of_a_title(tmp_path: Path) -> None:
    rows = [f"{n},Film {n // 2 if n < 4 else n},https://films.example/{n},tt{n:07d}" for n in range(120)]
    data = write(tmp_path, "item_id,title,link,imdb\n" + "\n".join(rows) + "\n")
    assert inspect(data)["titles_disambiguated"] == 2


def test_a_rating_column_is_passed_over_where_it_is_set_to_null(tmp_path: Path) -> None:
    data = write(tmp_path, CSV)
    log = Path(data["interactions"])
    log.write_text(log.read_text().replace(",3,", ",none,"))
    overrides = [f"data.{key}={value}" for key, value in data.items()]
    config = load_config(None, [*overrides, "data.columns.rating=null"])
    assert config.data.columns.rating is None
    assert "rating" not in plan_reading(config.data, "interactions").mappings[0]
    with pytest.raises(UserError, match=r"columns\.rating is null"):
        inspect_data(load_config(None, [*overrides, "data.columns.rating=null", "prepare.min_rating=3"]))
