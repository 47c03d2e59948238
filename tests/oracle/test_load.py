"""Oracles of one's own: what a table of scores answers, what is refused of a table and of a scorer."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rosepo.data.catalogue import Catalogue
from rosepo.oracle import load
from rosepo.oracle.load import ImportedScorer, WholeCatalogue, load_scorer, write_kind
from rosepo.oracle.sasrec import catalogue_digest
from rosepo.oracle.score_files import score_files
from rosepo.oracle.score_table import ScoreTable, write_score_table
from rosepo.utils.errors import UserError
from tests.helpers import tiny_catalogue

N_ITEMS = 7
EXAMPLES = [f"u{number}:1" for number in range(6)]
HERE = "tests.oracle.test_load"
finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


def text_ids(catalogue: Catalogue) -> Catalogue:
    return replace(catalogue, item_ids=np.array([f"i{item}" for item in catalogue.item_ids], dtype=object))


def write(folder: Path, *columns: Any, names: tuple[str, ...] = ("example_id", "item_id", "score")) -> str:
    """A file of scores, as two row groups."""
    table = pa.table(dict(zip(names, columns)))
    pq.write_table(table, folder / "scores.parquet", row_group_size=max(1, (len(table) + 1) // 2))
    return str(folder / "scores.parquet")


@given(
    st.dictionaries(st.tuples(st.integers(0, 7), st.integers(0, N_ITEMS - 1)), finite, min_size=1),
    st.booleans(),
    st.randoms(use_true_random=False),
)
def test_a_table_answers_what_a_dictionary_would(scored: dict[Any, float], text: bool, random: Any) -> None:
    # Examples 6 and 7 are in the file alone.
    catalogue = text_ids(tiny_catalogue(N_ITEMS)) if text else tiny_catalogue(N_ITEMS)
    names = [*EXAMPLES, "stranger:1", "stranger:2"]
    pairs = list(scored)
    random.shuffle(pairs)
    kept = [pair for pair in pairs if pair[0] < len(EXAMPLES)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = score_files(
            write(
                folder,
                pa.array([names[example] for example, _ in pairs]).dictionary_encode(),
                [catalogue.item_ids[item] for _, item in pairs],
                [scored[pair] for pair in pairs],
            )
        )
        if not kept:
            with pytest.raises(UserError, match=rf"none of its {len(pairs)} rows is of an example of this run"):
                write_score_table(files, [EXAMPLES], catalogue, folder)
            return
        figures = write_score_table(files, [EXAMPLES[:2], EXAMPLES[2:]], catalogue, folder)
        table = ScoreTable.load(folder, catalogue.item_ids)
        assert figures == {
            "rows": len(kept),
            "examples": len({example for example, _ in kept}),
            "unknown_rows": len(pairs) - len(kept),
            "unknown_examples": len({example for example, _ in pairs if example >= len(EXAMPLES)}),
        }
        for example, example_id in enumerate(names):
            for item in range(N_ITEMS):
                if (example, item) in kept:
                    found = table.score([example_id], [0], [np.zeros(0)], np.array([[item]]))
                    assert (found.dtype, found.shape) == (np.float32, (1, 1))
                    assert found[0, 0] == np.float32(scored[example, item])
                    continue
                shown = repr(catalogue.item_ids.tolist()[item])
                with pytest.raises(UserError) as raised:
                    table.score([example_id], [0], [np.zeros(0)], np.array([[item]]))
                assert f"no score for example_id {example_id!r} with item_id {shown}" in str(raised.value)
        targets = [random.randrange(N_ITEMS) for _ in names]
        chosen, other, examples = table.preferences(names, np.array(targets, dtype=np.int32))
        expected = [
            (np.float32(scored[example, target]), np.float32(scored[example, item]))
            for example, target in enumerate(targets[: len(EXAMPLES)])
            for item in range(N_ITEMS)
            if (example, target) in scored and (example, item) in scored and item != target
        ]
        assert sorted(zip(chosen.tolist(), other.tolist())) == sorted((float(a), float(b)) for a, b in expected)
        assert examples == len({e for e, t in enumerate(targets[:6]) if sum(x == e for x, _ in kept) > 1
                                and (e, t) in scored})  # fmt: skip


def test_a_batch_that_lacks_scores_names_the_first_and_counts_the_rest(tmp_path: Path) -> None:
    catalogue = tiny_catalogue(N_ITEMS)
    files = score_files(write(tmp_path, ["u0:1", "u0:1", "u1:1"], [100, 101, 100], [0.5, 2.0, -1.0]))
    write_score_table(files, [EXAMPLES], catalogue, tmp_path)
    table = ScoreTable.load(tmp_path, catalogue.item_ids)
    items = np.array([[0, 1], [1, 0], [2, 3]])
    message = r"example_id 'u1:1' with item_id 101, nor for 2 more pairs .* run `rosepo oracle` again"
    with pytest.raises(UserError, match=message):
        table.score(["u0:1", "u1:1", "u2:1"], [0, 1, 2], [np.zeros(0)] * 3, items)
    np.testing.assert_array_equal(table.score(["u0:1"], [0], [np.zeros(0)], items[:1]), np.float32([[0.5, 2.0]]))


@pytest.mark.parametrize(
    ("columns", "names", "message"),
    [
        ((["u0:1"], [100]), ("example_id", "item_id"), r"has no column 'score' \(it has example_id, item_id\)"),
        (([1], [100], [0.5]), None, "column 'example_id' is int64 and must be text"),
        ((["u0:1"], [100.0], [0.5]), None, "column 'item_id' is double and must be integers or text"),
        ((["u0:1"], [100], ["0.5"]), None, "column 'score' is string and must be numbers"),
        (([], [], []), None, "must be text|has no rows"),
        ((["u0:1", "u1:1"], [100, 101], [0.5, float("nan")]), None, "not finite in float32 for example_id 'u1:1'"),
        ((["u0:1", "u1:1"], [100, 101], [0.5, 1e300]), None, "not finite in float32 for example_id 'u1:1'"),
        ((["u0:1", "u1:1"], [100, 101], [None, 1.0]), None, "has rows without score"),
        ((["u0:1", None], [100, 101], [0.0, 1.0]), None, "has rows without example_id"),
        ((["u0:1"], [9], [0.5]), None, "item id .*9.* is not one of the 7 in the catalogue .* score items of"),
        ((["u0:1"], ["100"], [0.5]), None, r"item id '100' is not one of the 7 in the catalogue \(ids are integers\)"),
        (
            (["u0:1", "u1:1", "u0:1"], [100, 100, 100], [0.5, 1.0, 0.5]),
            None,
            "scores 1 pairs twice, the first example_id 'u0:1' with item_id 100: keep one row",
        ),
    ],
)
def test_a_table_that_cannot_be_right_is_refused(
    columns: tuple[Any, ...], names: tuple[str, ...] | None, message: str, tmp_path: Path
) -> None:
    location = write(tmp_path, *columns, names=names or ("example_id", "item_id", "score"))
    with pytest.raises(UserError, match=message):
        write_score_table(score_files(location), [EXAMPLES], tiny_catalogue(N_ITEMS), tmp_path)
    assert not list(tmp_path.glob("*.npy"))


def test_what_is_no_parquet_or_not_there_is_refused(tmp_path: Path) -> None:
    (tmp_path / "scores.csv").write_text("example_id,item_id,score\n")
    for location, message in (("none.parquet", "does not exist"), ("scores.csv", "cannot be read as Parquet")):
        with pytest.raises(UserError, match=rf"oracle\.scores.*{message}"):
            score_files(str(tmp_path / location))


def test_files_of_a_folder_and_of_a_glob_are_one_table(tmp_path: Path) -> None:
    for number in range(2):
        (tmp_path / f"{number}").mkdir()
        write(tmp_path / f"{number}", [f"u{number}:1"], [100 + number], [float(number)])
    for location in (tmp_path, tmp_path / "*" / "*.parquet"):
        out = tmp_path / "_out"
        out.mkdir(exist_ok=True)
        assert write_score_table(score_files(str(location)), [EXAMPLES], tiny_catalogue(N_ITEMS), out)["rows"] == 2


def distance(catalogue: Catalogue) -> Any:
    """A scorer of one's own: minus the distance to the newest item, and a little of the user's own."""

    def scorer(users: Any, histories: Any, items: np.ndarray) -> np.ndarray:
        newest = np.array([history[-1] for history in histories])[:, None]
        return -np.abs(items - newest) + np.asarray(users)[:, None] / 10 * (items % 2)

    return scorer


def nothing(catalogue: Catalogue) -> None:
    """Forgets to return its scorer."""


def broken(catalogue: Catalogue) -> Any:
    raise FileNotFoundError("no weights here")


def flat(catalogue: Catalogue) -> Any:
    return lambda users, histories, items: np.zeros(len(items))


def words(catalogue: Catalogue) -> Any:
    return lambda users, histories, items: items.astype(str)


def endless(catalogue: Catalogue) -> Any:
    return lambda users, histories, items: np.where(items == 2, np.inf, 0.0)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("no.such:thing", "cannot be imported: ModuleNotFoundError: .*PYTHONPATH"),
        (f"{HERE}:none", "cannot be imported: AttributeError"),
        (f"{HERE}:N_ITEMS", "is int and not a callable"),
        (f"{HERE}:broken", "cannot be called with a catalogue: FileNotFoundError: no weights here"),
        (f"{HERE}:nothing", "returns NoneType and not a scorer"),
    ],
)
def test_a_scorer_that_cannot_be_made_is_refused(path: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        ImportedScorer.make(path, tiny_catalogue(N_ITEMS))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("flat", r"answers items \[2, 2\] with float64 \[2\]: return one number an item"),
        ("words", "return one number an item"),
        ("endless", "gives example_id 'u1:1' a score that is not finite"),
    ],
)
def test_answers_that_are_no_scores_are_refused(name: str, message: str) -> None:
    scorer = ImportedScorer.make(f"{HERE}:{name}", tiny_catalogue(N_ITEMS))
    with pytest.raises(UserError, match=message):
        scorer.score(["u0:1", "u1:1"], [0, 1], [np.array([1])] * 2, np.array([[0, 1], [2, 3]]))


def test_the_whole_catalogue_is_scored_in_blocks_as_item_by_item(monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = ImportedScorer.make(f"{HERE}:distance", tiny_catalogue(N_ITEMS))
    histories, users = [np.array([0, 3]), np.array([5])], [3, 8]
    asked: list[int] = []
    inner = scorer.scorer
    scorer.scorer = lambda users, histories, items: asked.append(items.size) or inner(users, histories, items)
    monkeypatch.setattr(load, "BLOCK_SCORES", 5)
    found = WholeCatalogue(scorer, N_ITEMS).score_all(["a", "b"], users, histories)
    assert max(asked) <= 5
    for row, (user, history) in enumerate(zip(users, histories)):
        expected = [-abs(item - history[-1]) + user / 10 * (item % 2) for item in range(N_ITEMS)]
        np.testing.assert_allclose(found[row], expected, atol=1e-6)


def test_an_oracle_folder_says_what_it_holds_and_for_which_catalogue(tmp_path: Path) -> None:
    catalogue = tiny_catalogue(N_ITEMS)
    with pytest.raises(UserError, match="not an oracle folder"):
        load_scorer(tmp_path, catalogue)
    about = {"scorer": f"{HERE}:distance", "tau": 0.3}
    write_kind(tmp_path, "scorer", **about, catalogue_digest=catalogue_digest(catalogue.item_ids))
    scorer = load_scorer(tmp_path, catalogue)
    assert scorer.tau == 0.3
    assert scorer.score(["a"], [0], [np.array([1])], np.array([[4]])).tolist() == [[-3.0]]
    with pytest.raises(UserError, match="made for another catalogue"):
        load_scorer(tmp_path, tiny_catalogue(N_ITEMS + 1))
    write_kind(tmp_path, "oracle of Delphi")
    with pytest.raises(UserError, match="names no kind of oracle"):
        load_scorer(tmp_path, catalogue)
