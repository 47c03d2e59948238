"""The oracle stage without training, end to end: from a scorer or a table to groups and a report."""

from __future__ import annotations

import json
import shutil
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
from rosepo.evaluation.evaluate import evaluate
from rosepo.oracle.crossfit import FOLDS_FILE, Oracle
from rosepo.oracle.sasrec import SASRec, SASRecConfig
from rosepo.pipeline.fingerprints import stage_fingerprint
from rosepo.pipeline.preflight import check_before_run, check_named
from rosepo.report.text.conclusions import verdict
from rosepo.run.paths import RunPaths
from rosepo.run.stages import STAGES
from rosepo.sampling.pairs import pairs
from rosepo.utils.errors import UserError
from rosepo.utils.files import write_json
from tests.evaluation.runs import drawn, tiny_config, tiny_run

TAU = 0.7
HERE = "tests.oracle.test_external_oracle"
SAMPLED = ("pairs.negatives=2", "pairs.strategies={popularity: 1, uniform: 1}")


def by_popularity(catalogue: Catalogue) -> Any:
    """A scorer of one's own that knows neither user nor history."""
    return lambda users, histories, items: np.log1p(catalogue.train_count[items])


def all_alike(catalogue: Catalogue) -> Any:
    return lambda users, histories, items: items * np.nan


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


@pytest.fixture(scope="module")
def scores(sasrec: tuple[RunPaths, list[Any]]) -> dict[str, list[Any]]:
    """SASRec's own scores of the groups' pairs, and of four items for each validation example, target among them."""
    run, groups = sasrec
    catalogue = Catalogue.load(run.examples / "_items.parquet")
    oracle = Oracle.load(run.oracle, catalogue.item_ids)
    examples = {row["example_id"]: row for row in read(run.examples)}
    asked = {row["example_id"]: [row["chosen_item"], *row["rejected_items"]] for row in groups}
    for name, row in examples.items():
        if row["split"] == "validation":
            asked[name] = [row["target"], *[item for item in catalogue.item_ids.tolist() if item != row["target"]][:3]]
    table: dict[str, list[Any]] = {"example_id": [], "item_id": [], "score": []}
    for name, items in asked.items():
        history = catalogue.index(examples[name]["history"])
        table["example_id"] += [name] * len(items)
        table["item_id"] += items
        table["score"] += oracle.score_items([history], catalogue.index(items)[None])[0].tolist()
    return table


def save(path: Path, table: dict[str, list[Any]], keep: Any = None) -> str:
    rows = [row for row in pa.table(table).to_pylist() if keep is None or keep(row)]
    pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


def test_a_table_of_sasrecs_scores_gives_sasrecs_epsilon(sasrec: Any, scores: Any, tmp_path: Path) -> None:
    run, groups = sasrec
    path = save(tmp_path / "scores.parquet", scores)
    other = beside(run, tmp_path / "run")
    figures = make(tiny_config("oracle.kind=table", f"oracle.scores={path}", f"oracle.tau={TAU}"), other, other.oracle)
    assert (figures["kind"], figures["tau"], figures["rows"]) == ("table", TAU, len(scores["score"]))
    found = groups_of(other)
    assert [row["rejected_items"] for row in found] == [row["rejected_items"] for row in groups]
    for name in ("epsilon", "oracle_scores"):
        one, two = ([row[name] for row in table] for table in (groups, found))
        np.testing.assert_allclose(one, two, atol=1e-5)
    assert np.ptp([row["epsilon"] for row in groups]) > 0.01


def test_a_pair_without_score_ends_sampling_with_its_names(sasrec: Any, scores: Any, tmp_path: Path) -> None:
    run, groups = sasrec
    lost = (groups[7]["example_id"], groups[7]["rejected_items"][1])
    path = save(tmp_path / "scores.parquet", scores, lambda row: (row["example_id"], row["item_id"]) != lost)
    other = beside(run, tmp_path / "run")
    make(tiny_config("oracle.kind=table", f"oracle.scores={path}", "oracle.tau=1"), other, other.oracle)
    with pytest.raises(UserError, match=rf"no score for example_id '{lost[0]}' with item_id {lost[1]}:"):
        groups_of(other)


def test_tau_of_a_table_is_fitted_on_the_validation_pairs_that_it_scores(
    sasrec: Any, scores: Any, tmp_path: Path
) -> None:
    run, _ = sasrec
    path = save(tmp_path / "scores.parquet", scores)
    figures = make(tiny_config("oracle.kind=table", f"oracle.scores={path}"), run, tmp_path / "fitted")
    targets = {row["example_id"]: row["target"] for row in read(run.examples) if row["split"] == "validation"}
    rows = [row for row in pa.table(scores).to_pylist() if row["example_id"] in targets]
    chosen = {row["example_id"]: row["score"] for row in rows if row["item_id"] == targets[row["example_id"]]}
    margins = np.array([chosen[row["example_id"]] - row["score"] for row in rows
                        if row["item_id"] != targets[row["example_id"]]])  # fmt: skip
    assert figures["validation_examples"] == len(targets)
    assert figures["validation_pairs"] == len(margins) == 3 * len(targets)
    assert figures["auc"] == pytest.approx((margins > 0).mean())
    losses = [np.logaddexp(0, -margins / (figures["tau"] * factor)).mean() for factor in (0.9, 1.0, 1.1)]
    assert losses[1] == min(losses)
    assert json.loads((tmp_path / "fitted" / "calibration.json").read_text())["error"] == figures["calibration_error"]


def test_a_table_without_validation_examples_needs_tau(sasrec: Any, scores: Any, tmp_path: Path) -> None:
    run, groups = sasrec
    trained = {row["example_id"] for row in groups}
    extra = {"example_id": ["stranger:1"] * 2, "item_id": [100, 101], "score": [0.0, 1.0]}
    table = {name: scores[name] + extra[name] for name in scores}
    path = save(tmp_path / "scores.parquet", table, lambda row: row["example_id"] in {*trained, "stranger:1"})
    settings = ("oracle.kind=table", f"oracle.scores={path}")
    with pytest.raises(UserError, match=r"tau cannot be fitted: score some validation examples .* set oracle\.tau"):
        make(tiny_config(*settings), run, tmp_path / "fitted")
    figures = make(tiny_config(*settings, "oracle.tau=2"), run, tmp_path / "set")
    assert (figures["tau"], figures["auc"], figures["validation_pairs"]) == (2.0, None, 0)
    assert (figures["unknown_rows"], figures["unknown_examples"]) == (2, 1)
    assert not (tmp_path / "set" / "calibration.json").exists()


def test_an_evaluation_says_that_a_table_is_no_baseline(sasrec: Any, scores: Any, tmp_path: Path) -> None:
    run, _ = sasrec
    other = RunPaths(tmp_path / "run")
    other.root.mkdir()
    other.examples.symlink_to(run.examples)
    path = save(tmp_path / "scores.parquet", scores)
    config = tiny_config("oracle.kind=table", f"oracle.scores={path}", "oracle.tau=1")
    figures = make(config, other, other.oracle)
    write_json(other.oracle / "_manifest.json", {"figures": figures, "seconds": 1.0})
    other.groups.symlink_to(run.groups)
    other.evaluation.mkdir()
    found = evaluate(config, other, other.evaluation)
    metrics = json.loads((other.evaluation / "metrics.json").read_text())
    assert list(metrics["models"]) == ["popular", "markov"]
    assert metrics["oracle"] == "table of scores"
    assert "oracle" in found["left_out"]
    sentence = "The oracle is a table of scores, which cannot rank the whole catalogue, so it is no baseline here."
    assert sentence in str(verdict(metrics))
    assert sentence in results_table(metrics)
    report = drawn(config, other)
    assert report.count(sentence) == 2
    assert f"table of scores: {figures['rows']:,} of {figures['examples']:,} examples" in report
    assert "against the other titles that were scored" in report
    assert 'alt="How often the oracle is right' in report


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
        items = catalogue.index([row["chosen_item"], *row["rejected_items"]])
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
    assert f"oracle ({HERE}:by_popularity)" in results_table(metrics)
    assert f"{HERE}:by_popularity" in drawn(config, other)


def test_a_scorer_without_finite_scores_is_refused_by_the_stage(sasrec: Any, tmp_path: Path) -> None:
    config = tiny_config("oracle.kind=scorer", f"oracle.scorer={HERE}:all_alike")
    with pytest.raises(UserError, match="a score that is not finite"):
        make(config, sasrec[0], tmp_path / "oracle")


def test_other_scores_make_another_oracle(scores: Any, tmp_path: Path) -> None:
    stage = STAGES["oracle"]
    path = save(tmp_path / "scores.parquet", scores)
    config = tiny_config("oracle.kind=table", f"oracle.scores={path}")
    first = stage_fingerprint(config, stage, {})
    assert stage_fingerprint(config, stage, {}) == first
    save(tmp_path / "scores.parquet", {**scores, "score": [score + 1 for score in scores["score"]]})
    assert stage_fingerprint(config, stage, {}) != first


def test_another_scorer_makes_another_oracle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    config = tiny_config("oracle.kind=scorer", "oracle.scorer=scorer_of_a_test:make")
    found = []
    for code in ("def make(catalogue): return None", "def make(catalogue): return max"):
        (tmp_path / "scorer_of_a_test.py").write_text(code)
        found.append(stage_fingerprint(config, STAGES["oracle"], {}))
    assert found[0] != found[1] == stage_fingerprint(config, STAGES["oracle"], {})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["oracle.kind=scorer", "oracle.scorer=no.such:thing"], r"oracle\.scorer: no\.such:thing cannot be imported"),
        (["oracle.kind=table", "oracle.scores=/nowhere.parquet"], r"oracle\.scores=/nowhere\.parquet does not exist"),
    ],
)
def test_an_oracle_that_is_not_there_is_told_before_any_work(settings: list[str], message: str) -> None:
    config = load_config(None, ["data.dataset=movietweetings-100k", *settings])
    with pytest.raises(UserError, match=message):
        check_before_run(config)
    with pytest.raises(UserError, match=message):
        check_named(config, ["oracle"])
    check_named(config, ["sft"])
