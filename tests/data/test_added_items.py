"""Items that join a catalogue after training, from files of any format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rosepo.config import Config, load_config
from rosepo.data.added_items import plan_added, told_of, with_items
from rosepo.data.catalogue import ITEMS_FILE, Catalogue, ranked_items
from rosepo.utils.errors import UserError

NUMBERED = Catalogue(np.array([10, 20, 30]), ["Heat", "Ronin", "Heat (2)"], [("Crime",), (), ()], np.array([3, 1, 0]))
NAMED = Catalogue(np.array(["a", "b"], dtype=object), ["Heat", "Ronin"], [(), ()], np.array([2, 2]))


def add(path: Path, catalogue: Catalogue = NUMBERED, config: Config | None = None) -> tuple[Catalogue, dict[str, int]]:
    return with_items(catalogue, config or load_config(), str(path), "--add-items")


def csv(folder: Path, text: str, name: str = "new.csv") -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


@pytest.mark.parametrize("kind", ["parquet", "csv", "tsv", "jsonl", "dat", "item"])
def test_items_of_any_format_stand_behind_the_catalogue_by_id(tmp_path: Path, kind: str) -> None:
    rows = [(25, "Alien", ["Horror", "SF"]), (5, "Solaris", ["SF"])]
    path = tmp_path / f"new.{kind}"
    if kind == "parquet":
        ids, titles, categories = zip(*rows, strict=True)
        pq.write_table(pa.table({"item_id": list(ids), "title": list(titles), "categories": list(categories)}), path)
    elif kind == "jsonl":
        names = ("item_id", "title", "categories")
        path.write_text("\n".join(json.dumps(dict(zip(names, row, strict=True))) for row in rows))
    else:
        head, between = {
            "csv": ("item_id,title,categories\n", ","),
            "tsv": ("item_id\ttitle\tcategories\n", "\t"),
            "dat": ("", "::"),
            "item": ("item_id:token\ttitle:token\tcategories:token_seq\n", "\t"),
        }[kind]
        joint = " " if kind == "item" else "|"
        path.write_text(head + "".join(f"{i}{between}{t}{between}{joint.join(c)}\n" for i, t, c in rows))
    found, counts = add(path)
    assert found.item_ids.tolist() == [10, 20, 30, 5, 25]
    assert found.item_ids.dtype == np.int64
    assert found.titles == [*NUMBERED.titles, "Solaris", "Alien"]
    assert found.categories == [*NUMBERED.categories, ("SF",), ("Horror", "SF")]
    assert found.train_count.tolist() == [3, 1, 0, 0, 0]
    assert (found.added, found.own.same_items(NUMBERED)) == (2, True)
    assert counts == {"read": 2, "known": 0, "added": 2, "renamed": 0}


def test_what_the_catalogue_has_is_passed_over_and_counted(tmp_path: Path) -> None:
    found, counts = add(csv(tmp_path, "item_id,title\n20,Another Name\n7,Alien\n"))
    assert found.titles == [*NUMBERED.titles, "Alien"]
    assert counts == {"read": 2, "known": 1, "added": 1, "renamed": 0}
    assert told_of(counts, "new.csv") == "items added of new.csv: 1; in the catalogue already: 1"
    found, counts = add(csv(tmp_path, "item_id,title\n20,Ronin\n"))
    assert (found.added, counts["known"]) == (0, 1)
    assert found.same_items(NUMBERED)


def test_a_title_that_another_item_has_is_numbered_or_refused_as_prepare_does(tmp_path: Path) -> None:
    path = csv(tmp_path, "item_id,title\n40,HEAT\n41,ronin\n42,Ro\u200bnin\n43,Alien\n")
    found, counts = add(path)
    assert found.titles == [*NUMBERED.titles, "HEAT (3)", "ronin (2)", "Ro\u200bnin (3)", "Alien"]
    assert (counts["added"], counts["renamed"]) == (4, 3)
    assert "; numbered, as another item has their title: 3" in told_of(counts, "new.csv")
    with pytest.raises(UserError, match=r"items 10 \('Heat'\) and 40 \('HEAT'\).*rename the one of --add-items=.*csv"):
        add(path, config=load_config(None, ["prepare.duplicate_titles=refuse"]))


def test_a_title_is_put_together_as_those_of_the_run_are(tmp_path: Path) -> None:
    path = csv(tmp_path, "sku,name,year\n1,Heat,2013\n2,Alien,\n")
    config = load_config(None, ["data.columns.item_id=sku", 'data.columns.title="{name} ({year})"'])
    assert add(path, config=config)[0].titles[3:] == ["Heat (2013)", "Alien"]


@pytest.mark.parametrize(
    ("catalogue", "text", "words"),
    [
        (
            NUMBERED,
            "item_id,title\n1,A\nx7,B\n",
            r"item_id 'x7' is text, and the catalogue's ids are integers.*10",
        ),
        (NUMBERED, "item_id,title\n1,A\n007,B\n", "item_id '007' is text"),
        (NUMBERED, "item_id,title\n1,A\n1,B\n", r"--add-items=.*new\.csv: item_id '1' occurs 2 times"),
        (NUMBERED, "item_id,title\n1,A\n2, \n", r"new\.csv: row 2 has an empty title"),
        (NUMBERED, "item_id,titel\n1,A\n", r"no column 'title' \(did you mean 'titel'"),
        (NUMBERED, "item_id,title\n", "has no rows"),
    ],
)
def test_items_that_cannot_be_added_are_refused_in_a_sentence(
    tmp_path: Path, catalogue: Catalogue, text: str, words: str
) -> None:
    with pytest.raises(UserError, match=words):
        add(csv(tmp_path, text), catalogue)


def test_ids_are_of_the_catalogues_type(tmp_path: Path) -> None:
    assert add(csv(tmp_path, "item_id,title\n7,Alien\n"), NAMED)[0].item_ids.tolist() == ["a", "b", "7"]
    pq.write_table(pa.table({"item_id": [7], "title": ["Alien"]}), tmp_path / "new.parquet")
    with pytest.raises(UserError, match="item_id 7 is an integer, and the catalogue's ids are text"):
        add(tmp_path / "new.parquet", NAMED)


@pytest.mark.parametrize(
    ("name", "words"),
    [("none.csv", "--add-items=.*none.csv does not exist"), ("new.xyz", "tells no format .*: give it one of these$")],
)
def test_files_are_looked_for_before_work(tmp_path: Path, name: str, words: str) -> None:
    csv(tmp_path, "item_id,title\n7,Alien\n", "new.xyz")
    with pytest.raises(UserError, match=words):
        plan_added(load_config(), str(tmp_path / name), "--add-items")


def test_a_file_of_a_catalogue_says_what_was_added(tmp_path: Path) -> None:
    found, _ = add(csv(tmp_path, "item_id,title\n7,Alien\n"))
    for folder, catalogue in (("examples", NUMBERED), ("evaluation", found)):
        (tmp_path / folder).mkdir()
        assert ranked_items(tmp_path / "examples", tmp_path / "evaluation").parent.name == "examples"
        catalogue.save(tmp_path / folder / ITEMS_FILE)
    path = ranked_items(tmp_path / "examples", tmp_path / "evaluation")
    assert path.parent.name == "evaluation"
    loaded: Any = Catalogue.load(path)
    assert (loaded.added, loaded.titles) == (1, found.titles)
    assert loaded.own.same_items(NUMBERED)
    assert Catalogue.load(tmp_path / "examples" / ITEMS_FILE).added == 0
    assert "added" not in pq.read_schema(tmp_path / "examples" / ITEMS_FILE).names
