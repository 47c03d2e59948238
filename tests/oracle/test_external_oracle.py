"""Scorers of the user's own: what is refused of them, and from one of them to groups and a report."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from rosepo.cli.summary import results_table
from rosepo.config import Config, load_config
from rosepo.data.catalogue import Catalogue
from rosepo.data.readers.digests import FileDigests
from rosepo.evaluation.evaluate import evaluate
from rosepo.oracle import external_oracle
from rosepo.oracle.crossfit import FOLDS_FILE
from rosepo.oracle.external_oracle import ImportedScorer
from rosepo.oracle.load import load_scorer
from rosepo.oracle.sasrec import SASRec, SASRecConfig
from rosepo.pipeline.fingerprints import files_read
from rosepo.pipeline.preflight import check_before_run, check_named
from rosepo.run.paths import RunPaths
from rosepo.run.stages import STAGES
from rosepo.sampling.pairs import pairs
from rosepo.utils.errors import UserError
from rosepo.utils.files import write_json
from tests.evaluation.runs import drawn, tiny_config, tiny_run
from tests.helpers import tiny_catalogue

TAU = 0.7
N_ITEMS = 7
HERE = "tests.oracle.test_external_oracle"
SAMPLED = ("pairs.negatives=2", "pairs.strategies={popularity: 1, uniform: 1}")


def by_popularity(catalogue: Catalogue) -> Any:
    """A scorer of one's own that knows neither user nor history."""
    return lambda users, histories, items: np.log1p(catalogue.train_count[items])


def all_alike(catalogue: Catalogue) -> Any:
    return lambda users, histories, items: items * np.nan


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
        ("endless", "gives an item of user 1 a score that is not finite"),
    ],
)
def test_answers_that_are_no_scores_are_refused(name: str, message: str) -> None:
    scorer = ImportedScorer.make(f"{HERE}:{name}", tiny_catalogue(N_ITEMS))
    with pytest.raises(UserError, match=message):
        scorer.score([0, 1], [np.array([1])] * 2, np.array([[0, 1], [2, 3]]))


def test_the_whole_catalogue_is_scored_in_blocks_as_item_by_item(monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = ImportedScorer.make(f"{HERE}:distance", tiny_catalogue(N_ITEMS))
    histories, users = [np.array([0, 3]), np.array([5])], [3, 8]
    asked: list[int] = []
    inner = scorer.scorer
    scorer.scorer = lambda users, histories, items: asked.append(items.size) or inner(users, histories, items)
    monkeypatch.setattr(external_oracle, "BLOCK_SCORES", 5)
    found = scorer.score_all(users, histories)
    assert max(asked) <= 5
    for row, (user, history) in enumerate(zip(users, histories)):
        expected = [-abs(item - history[-1]) + user / 10 * (item % 2) for item in range(N_ITEMS)]
        np.testing.assert_allclose(found[row], expected, atol=1e-6)


def make(config: Config, paths: RunPaths, out: Path) -> dict[str, Any]:
    out.mkdir()
    return STAGES["oracle"].load()(config, paths, out)


def beside(run: RunPaths, root: Path) -> RunPaths:
    """A run's folder with the examples and the model of another one."""
    root.mkdir()
    for name in ("examples", "sft"):
        (root / name).symlink_to(getattr(run, name))
    return RunPaths(root)


def read(folder: Path) -> list[dict[str, Any]]:
    return pa.concat_tables([pq.read_table(path) for path in sorted(folder.glob("part-*.parquet"))]).to_pylist()


def groups_of(run: RunPaths) -> list[dict[str, Any]]:
    run.groups.mkdir()
    pairs(tiny_config(*SAMPLED), run, run.groups)
    return read(run.groups)


@pytest.fixture(scope="module")
def sasrec(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunPaths, list[Any]]:
    """A run with an untrained SASRec as its oracle, and its groups."""
    run = tiny_run(tmp_path_factory.mktemp("run"))
    shutil.rmtree(run.aligned)
    catalogue = Catalogue.load(run.examples / "_items.parquet")
    torch.manual_seed(0)
    SASRec(SASRecConfig(len(catalogue), 10, 16)).save(run.oracle, catalogue.item_ids, tau=TAU)
    write_json(run.oracle / FOLDS_FILE, {"folds": 1, "seed": 0})
    return run, groups_of(run)


def test_a_scorer_of_ones_own_gives_epsilon_and_ranks_the_catalogue(sasrec: Any, tmp_path: Path) -> None:
    run, groups = sasrec
    other = beside(run, tmp_path / "run")
    config = tiny_config("oracle.kind=scorer", f"oracle.scorer={HERE}:by_popularity")
    figures = make(config, other, other.oracle)
    assert (figures["kind"], figures["validation_examples"]) == ("scorer", 24)
    assert figures["validation_pairs"] == 24 * 20
    assert 0 <= figures["auc"] <= 1
    assert (other.oracle / "calibration.json").is_file()
    catalogue = Catalogue.load(run.examples / "_items.parquet")
    found = groups_of(other)
    assert [row["rejected_items"] for row in found] == [row["rejected_items"] for row in groups]
    for row in found[::7]:
        items = [row["chosen_item"], *row["rejected_items"]]
        expected = np.log1p(catalogue.train_count[items]) / figures["tau"]
        np.testing.assert_allclose(row["oracle_scores"], expected, rtol=1e-5)
        chance = 1 / (1 + np.exp(expected[0] - expected[1:]))
        np.testing.assert_allclose(row["epsilon"], np.minimum(chance, 0.4999), atol=1e-5)
    (other.root / "sft").unlink()
    other.evaluation.mkdir()
    evaluate(config, other, other.evaluation)
    ranked = {name: pq.read_table(other.evaluation / "rankings" / f"{name}.parquet") for name in ("popular", "oracle")}
    assert ranked["oracle"]["items"].to_pylist() == ranked["popular"]["items"].to_pylist()
    metrics = json.loads((other.evaluation / "metrics.json").read_text())
    assert f"Oracle ({HERE}:by_popularity)" in results_table(metrics)
    assert f"{HERE}:by_popularity" in drawn(config, other)


def test_a_scorer_without_finite_scores_is_refused_by_the_stage(sasrec: Any, tmp_path: Path) -> None:
    config = tiny_config("oracle.kind=scorer", f"oracle.scorer={HERE}:all_alike")
    with pytest.raises(UserError, match="a score that is not finite"):
        make(config, sasrec[0], tmp_path / "oracle")


def test_another_scorer_makes_another_oracle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    config = tiny_config("oracle.kind=scorer", "oracle.scorer=scorer_of_a_test:make")
    found = []
    for code in ("def make(catalogue): return None", "def make(catalogue): return max"):
        (tmp_path / "scorer_of_a_test.py").write_text(code)
        found.append(FileDigests().of(files_read(config, STAGES["oracle"])))
    assert found[0] != found[1] == FileDigests().of(files_read(config, STAGES["oracle"]))


def test_an_oracle_that_is_not_there_is_told_before_any_work() -> None:
    config = load_config(
        None, ["data.dataset=movietweetings-100k", "oracle.kind=scorer", "oracle.scorer=no.such:thing"]
    )
    message = r"oracle\.scorer: no\.such:thing cannot be imported"
    with pytest.raises(UserError, match=message):
        check_before_run(config)
    with pytest.raises(UserError, match=message):
        check_named(config, ["oracle"])
    check_named(config, ["sft"])


@pytest.fixture
def documented(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Any]]:
    """The scorer of docs/method.md where Python finds it, beside the file that it reads; what that file holds."""
    text = (Path(__file__).parents[2] / "docs" / "method.md").read_text(encoding="utf-8")
    block = text.split("    # table_scorer.py", 1)[1].split("\n\nAnd", 1)[0]
    (tmp_path / "table_scorer.py").write_text(textwrap.dedent("    #" + block), encoding="utf-8")
    rng = np.random.default_rng(3)
    catalogue = tiny_catalogue(30)
    rows = [(user, item) for user in range(24) for item in catalogue.item_ids.tolist()]
    rng.shuffle(rows)
    table = {"user_id": [user for user, _ in rows], "item_id": [item for _, item in rows]}
    table["score"] = rng.normal(size=len(rows)).tolist()
    pq.write_table(pa.table(table), tmp_path / "scores.parquet")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "table_scorer", raising=False)
    monkeypatch.chdir(tmp_path)
    return table


def test_the_documented_scorer_makes_an_oracle_of_a_table_of_scores(
    documented: dict[str, list[Any]], tmp_path: Path
) -> None:
    run = tiny_run(tmp_path / "run", models=False)
    figures = make(tiny_config("oracle={kind: scorer, scorer: table_scorer:from_table, tau: 2}"), run, run.oracle)
    assert (figures["kind"], figures["tau"], figures["validation_examples"]) == ("scorer", 2.0, 24)
    catalogue = Catalogue.load(run.examples / "_items.parquet")
    scorer = load_scorer(run.oracle, catalogue)
    scores = {(user, item): score for user, item, score in zip(*documented.values(), strict=True)}
    users, items = [5, 0, 23], np.array([[0, 29], [7, 3], [11, 11]])
    expected = [[scores[user, catalogue.item_ids[item]] for item in row] for user, row in zip(users, items.tolist())]
    np.testing.assert_allclose(scorer.score(users, [np.array([1])] * 3, items), expected, rtol=1e-6)
    whole = [[scores[5, item] for item in catalogue.item_ids.tolist()]]
    np.testing.assert_allclose(scorer.score_all([5], [np.array([1])]), whole, rtol=1e-6)


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        (lambda row: row["user_id"] == 7, r"oracle\.scorer=table_scorer:from_table cannot score: KeyError: .*7"),
        (lambda row: row["user_id"] == 7 and row["score"] < 0.5, "gives an item of user 7 a score that is not finite"),
        (lambda row: row["item_id"] == 100, "cannot be called with a catalogue: KeyError: .*100.* not in index"),
    ],
)
def test_what_a_table_of_scores_lacks_is_told_by_name(
    lost: Callable[[dict[str, Any]], bool], message: str, documented: dict[str, list[Any]], tmp_path: Path
) -> None:
    rows = [row for row in pa.table(documented).to_pylist() if not lost(row)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "scores.parquet")
    run = tiny_run(tmp_path / "run", models=False)
    with pytest.raises(UserError, match=message):
        make(tiny_config("oracle={kind: scorer, scorer: table_scorer:from_table}"), run, run.oracle)
