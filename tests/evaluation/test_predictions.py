"""Other systems' lists: both shapes give the same lists, and what is amiss is counted, told or refused."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rosepo.config import load_config
from rosepo.data.catalogue import Catalogue
from rosepo.evaluation import predictions
from rosepo.evaluation.measured_examples import plan_parts, write_examples
from rosepo.evaluation.predictions import Predictions, read_predictions
from rosepo.evaluation.rankings import read_rankings
from rosepo.metrics.ranking import target_ranks
from rosepo.utils.errors import UserError
from tests.evaluation.runs import tiny_run

Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Catalogue]:
    """The file of 24 measured examples, one a user, and the catalogue."""
    root = tmp_path_factory.mktemp("run")
    inputs = tiny_run(root, models=False)
    write_examples(inputs.examples, "test", None, 8, root / "examples.parquet")
    return root / "examples.parquet", Catalogue.load(inputs.examples / "_items.parquet")


def read(run: tuple[Path, Catalogue], path: Path, ambiguous: bool = False) -> Predictions:
    system = load_config(None, [f"evaluate.predictions=[it={path}]"]).evaluate.external["it"]
    return read_predictions(system, run[1], run[0], ambiguous)


def ranked(run: tuple[Path, Catalogue], lists: Predictions, out: Path) -> tuple[np.ndarray, np.ndarray]:
    lists.rank(run[0], out, plan_parts(run[0]))
    return read_rankings(out)


def jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def table(path: Path, rows: Rows) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def own_lists(catalogue: Catalogue) -> dict[int, list[int]]:
    """Item indexes by user."""
    rng = np.random.default_rng(1)
    return {user: rng.permutation(len(catalogue))[:20].tolist() for user in range(24)}


def _parquet(folder: Path, ids: Rows, titles: Rows) -> Path:
    pq.write_table(pa.Table.from_pylist(ids), folder / "x.parquet", row_group_size=5)
    return folder / "x.parquet"


def _example_of_user(folder: Path) -> dict[int, str]:
    examples = pq.read_table(folder.parent / "examples.parquet", columns=["example_id", "user_id"]).to_pylist()
    return {row["user_id"]: row["example_id"] for row in examples}


def _by_example(folder: Path, ids: Rows, titles: Rows) -> Path:
    name = _example_of_user(folder)
    rows = [{"example_id": name[row["user_id"]], "user_id": -1, "items": row["items"]} for row in titles]
    return jsonl(folder / "x.jsonl", rows)


def _csv_lists(folder: Path, ids: Rows, titles: Rows) -> Path:
    return table(folder / "x.csv", [{"user_id": r["user_id"], "items": json.dumps(r["items"])} for r in titles])


def _entries_by_rank(folder: Path, ids: Rows, titles: Rows) -> Path:
    rows = [{"user_id": r["user_id"], "item_id": item, "rank": place + 1}
            for r in ids for place, item in enumerate(r["items"])]  # fmt: skip
    return table(folder / "x.csv", [rows[place] for place in np.random.default_rng(0).permutation(len(rows))])


def _entries_by_score(folder: Path, ids: Rows, titles: Rows) -> Path:
    rows = [{"user_id": str(r["user_id"]), "item_id": str(item), "score": 3 - place if place else 3.5}
            for r in ids for place, item in enumerate(r["items"])]  # fmt: skip
    return jsonl(folder / "x.jsonl", reversed(rows))


def _entries_by_example(folder: Path, ids: Rows, titles: Rows) -> Path:
    name = _example_of_user(folder)
    rows = [{"example_id": name[r["user_id"]], "item_id": item, "score": -place}
            for r in ids for place, item in enumerate(r["items"])]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), folder / "x.parquet", row_group_size=7)
    return folder / "x.parquet"


@pytest.mark.parametrize(
    "written",
    [_parquet, _by_example, _csv_lists, _entries_by_rank, _entries_by_score, _entries_by_example],
    ids=lambda f: f.__name__,
)
def test_both_shapes_give_the_same_lists_in_every_format(
    written: Callable[[Path, Rows, Rows], Path], run: tuple[Path, Catalogue], tmp_path: Path
) -> None:
    examples, catalogue = run
    lists = own_lists(catalogue)
    ids = [{"user_id": user, "items": catalogue.item_ids[items].tolist()} for user, items in lists.items()]
    titles = [{"user_id": user, "items": [f"  {catalogue.titles[item].upper()}" for item in items]}
              for user, items in lists.items()]  # fmt: skip
    (tmp_path / "theirs").mkdir()
    pq.write_table(pq.read_table(examples), tmp_path / "examples.parquet")
    found = read(run, written(tmp_path / "theirs", ids, titles))
    ranks, items = ranked(run, found, tmp_path / "it.parquet")
    table_ = pq.read_table(examples)
    expected = np.array([lists[user] for user in table_["user_id"].to_pylist()])
    np.testing.assert_array_equal(items, expected)
    np.testing.assert_array_equal(ranks, target_ranks(expected, table_["target"].to_numpy()))
    assert found.counts["missing"] == found.counts["unknown_entries"] == found.counts["not_measured"] == 0
    assert "24 of 24 examples" in found.told()


def test_wrong_entries_take_their_places_and_are_told(run: tuple[Path, Catalogue], tmp_path: Path) -> None:
    examples, catalogue = run
    rows = pq.read_table(examples).to_pylist()
    title = catalogue.titles
    first, second = rows[0], rows[1]
    other = next(title[item] for item in range(len(title)) if item not in (*first["seen"], first["target"]))
    lists = [
        {"user_id": first["user_id"],
         "items": ["No such film", other, other, title[first["seen"][0]], title[first["target"]]]},
        {"user_id": second["user_id"], "items": []},
        {"user_id": 999, "items": [other]},
    ]  # fmt: skip
    found = read(run, jsonl(tmp_path / "x.jsonl", lists))
    ranks, items = ranked(run, found, tmp_path / "it.parquet")
    assert ranks.tolist() == [4] + [-1] * 23
    there = [first["seen"][0], first["target"]]
    assert items[0, :6].tolist() == [-1, catalogue.titles.index(other), -1, *there, -1]
    assert dict(found.counts) == {
        "examples": 24, "missing": 22, "shorter": 2, "unknown_entries": 1, "repeated_entries": 1, "seen_entries": 1,
        "not_measured": 1, "shared": 0,
    }  # fmt: skip
    assert found.told() == (
        "it: lists for 2 of 24 examples; without a list, so a miss: 22; lists shorter than 20: 2; entries that take "
        "their places as wrong answers: 1 no item of the catalogue (such as 'No such film'), 1 repeated, 1 chosen "
        "before; lists of nobody who is measured: 1"
    )


def test_lists_longer_than_twenty_are_cut_and_every_example_of_a_user_has_the_users_list(tmp_path: Path) -> None:
    root = tmp_path / "run"
    inputs = tiny_run(root, models=False)
    catalogue = Catalogue.load(inputs.examples / "_items.parquet")
    part = inputs.examples / "part-00000.parquet"
    whole = pq.read_table(part)
    users = (whole["user_id"].to_numpy() // 2).tolist()  # two users become one
    pq.write_table(whole.set_column(1, "user_id", pa.array(users)), part)
    write_examples(inputs.examples, "test", None, 8, root / "examples.parquet")
    ids = catalogue.item_ids.tolist()
    rows = [{"user_id": user, "items": ids[user:] + ids[:user]} for user in range(12)]
    found = read((root / "examples.parquet", catalogue), jsonl(tmp_path / "x.jsonl", rows))
    _, items = ranked((root / "examples.parquet", catalogue), found, tmp_path / "it.parquet")
    assert items.shape == (24, 20)
    assert (items[0] == items[1]).all()
    assert items[0].tolist() == list(range(20))
    assert "examples that share the list of their user: 24 (give example_id instead)" in found.told()


def _refusals() -> list[Any]:
    entry = {"user_id": 1, "item_id": 100, "rank": 1}
    return [
        ([{"users": 1, "items": [100]}], "has no column 'user_id' or 'example_id'"),
        ([{"user_id": 1, "titles": [100]}], r"has no column 'items' or 'item_id' \(it has user_id, titles\)"),
        ([{**entry, "items": [100]}], "has both a column 'items' and a column 'item_id'"),
        ([{"user_id": 1, "item_id": 100}], "one item a row and no column 'rank' or 'score'"),
        ([{**entry, "score": 0.5}], "one item a row and both a column 'rank' and a column 'score'"),
        ([{"user_id": 1, "items": [100]}, {"user_id": 1, "items": [101]}], "two lists of user_id 1: keep one"),
        ([entry, {**entry, "item_id": 101}], "two entries of rank 1 for user_id 1"),
        ([{"user_id": 1, "item_id": 100, "rank": "first"}], "has rank 'first'"),
        ([entry, {"user_id": 1, "item_id": 101}], "1 rows have no rank: 'rank' must be a number in every row"),
        ([{"user_id": 1, "item_id": 100, "score": "nan"}], "has score nan"),
        ([{"user_id": 77, "items": [100]}], "nobody in .* is among the 24 measured examples"),
        ([{"user_id": 1, "items": ["Alpha", "Beta"]}], "no entry of .* is an item of the catalogue .*'Alpha', 'Beta'"),
        ([{"user_id": 1, "items": []}], r"no entry of .* is an item of the catalogue \(the catalogue 'Night"),
        ([{"user_id": 1, "items": [1.5]}], "column 'items' holds double: give item ids"),
        ([{"user_id": 1, "items": [{"item_id": 100}]}], "column 'items' holds struct<.*>: give item ids"),
        ([{"user_id": 1.5, "items": [100]}], "column 'user_id' is double: ids must be integers or text"),
        ([{"user_id": None, "items": [100]}], "has no 'user_id'"),
        ([{"user_id": 1, "items": "Alpha"}], "is not a JSON list"),
        ([{"user_id": 1, "items": "[true, 100]"}], "is not a JSON list"),
        ([{"user_id": 1, "items": f"[{'[' * 9999}"}], "is not a JSON list"),
        ([{"user_id": 1, "items": f"[{'9' * 9999}]"}], "is not a JSON list"),
        (
            [{**entry, "item_id": "Night (1980)"}],
            r"no entry of .* \(it has 'Night \(1980\)', the catalogue 'Night \(1980\)', id 100\): give item ids or, in",
        ),
    ]


@pytest.mark.parametrize(("rows", "message"), _refusals())
def test_a_file_that_cannot_be_scored_is_refused_in_one_sentence(
    rows: Rows, message: str, run: tuple[Path, Catalogue], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=rf"^evaluate\.predictions: .*{message}") as refused:
        read(run, jsonl(tmp_path / "x.jsonl", rows))
    assert "\n" not in str(refused.value)


def test_a_title_that_several_items_share_and_text_that_may_mean_two_items_are_refused(
    run: tuple[Path, Catalogue], tmp_path: Path
) -> None:
    catalogue = Catalogue(np.array([1, 2, 3]), ["Hamlet", "Hamlet (2)", "1"], [()] * 3, np.array([3, 2, 1]))
    path = jsonl(tmp_path / "x.jsonl", [{"user_id": 1, "items": ["Hamlet"]}])
    with pytest.raises(UserError, match=r"'Hamlet' is the title of several items \(1 and 2\): give item ids"):
        read((run[0], catalogue), path, ambiguous=True)
    assert read((run[0], catalogue), path).lists[1, 0] == 0
    path = jsonl(tmp_path / "x.jsonl", [{"user_id": 1, "items": ["1"]}])
    with pytest.raises(UserError, match=r"'1' is the title of item 3 and the id of 'Hamlet': write '3' for the one"):
        read((run[0], catalogue), path)
    for unmistakable in ({"items": [1]}, {"item_id": "1", "rank": 1}):
        path = jsonl(tmp_path / "x.jsonl", [{"user_id": 1, **unmistakable}])
        assert read((run[0], catalogue), path).lists[1, 0] == 0


def test_lists_in_csv_may_hold_nulls_and_numbers_that_are_no_ids(run: tuple[Path, Catalogue], tmp_path: Path) -> None:
    written = ["[100, null, 101]", "[100, 99999999999999999999, 101]", '[100, "No such film", "101"]', '["100", null]']
    path = table(tmp_path / "x.csv", [{"user_id": user, "items": text} for user, text in enumerate(written)])
    found = read(run, path)
    assert found.lists[:4, :4].tolist() == [[0, -2, 1, -1]] * 3 + [[0, -2, -1, -1]]
    assert found.counts["unknown_entries"] == 4


def test_files_of_other_formats_and_of_two_shapes_are_refused(run: tuple[Path, Catalogue], tmp_path: Path) -> None:
    (tmp_path / "x.tsv").write_text("user_id\titem_id\trank\n1\t100\t1\n")
    with pytest.raises(UserError, match=r"x\.tsv is tsv: give Parquet, CSV or JSON Lines"):
        read(run, tmp_path / "x.tsv")
    (tmp_path / "both").mkdir()
    jsonl(tmp_path / "both" / "a.jsonl", [{"user_id": 1, "items": [100]}])
    jsonl(tmp_path / "both" / "b.jsonl", [{"user_id": 2, "item_id": 100, "rank": 1}])
    with pytest.raises(UserError, match=r"b\.jsonl has other columns than .*a\.jsonl: give files of one kind"):
        read(run, tmp_path / "both")
    (tmp_path / "none.csv").write_text("user_id,item_id,rank\n")
    with pytest.raises(UserError, match=r"none\.csv has no rows: write one for each user"):
        read(run, tmp_path / "none.csv")


@pytest.mark.parametrize("order", ["rank", "score"])
def test_of_lists_of_any_length_the_first_twenty_are_kept_on_the_way(
    order: str, run: tuple[Path, Catalogue], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Entries of all users in any order, a few hundred a stretch; scores tie, and the file's order decides."""
    catalogue, rng = run[1], np.random.default_rng(2)
    rows = [{"user_id": user, "item_id": int(item), order: place + 1 if order == "rank" else -(place // 3)}
            for user in range(24) for place, item in enumerate(rng.permutation(catalogue.item_ids))]  # fmt: skip
    mixed = [rows[place] for place in rng.permutation(len(rows))]
    pq.write_table(pa.Table.from_pylist(mixed), tmp_path / "x.parquet", row_group_size=50)
    at_once = read(run, tmp_path / "x.parquet")
    monkeypatch.setattr(predictions, "PENDING", 100)
    kept: list[int] = []
    first = predictions._Lists._first_entries

    def watched(self: Any) -> Any:
        found = first(self)
        kept.append(len(found[0]))
        return found

    monkeypatch.setattr(predictions._Lists, "_first_entries", watched)
    on_the_way = read(run, tmp_path / "x.parquet")
    np.testing.assert_array_equal(on_the_way.lists, at_once.lists)
    assert on_the_way.counts == at_once.counts
    assert len(kept) > 1
    assert max(kept) == 24 * 20 < len(rows)
    expected = sorted(
        (row for row in mixed if row["user_id"] == 3), key=lambda row: row[order] * (1 if order == "rank" else -1)
    )
    assert catalogue.item_ids[on_the_way.lists[3]].tolist() == [row["item_id"] for row in expected[:20]]


def test_titles_that_look_like_dates_are_titles(run: tuple[Path, Catalogue], tmp_path: Path) -> None:
    catalogue = Catalogue(np.array([1, 2]), ["2001-01-01", "1984"], [()] * 2, np.array([2, 1]))
    path = jsonl(tmp_path / "x.jsonl", [{"user_id": 1, "items": ["2001-01-01"]}])
    assert read((run[0], catalogue), path).lists[1, :2].tolist() == [0, -1]
