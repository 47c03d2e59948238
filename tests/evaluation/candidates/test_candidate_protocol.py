"""The candidate protocol and free answers in whole evaluations of untrained models, without processes of their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rosepo.cli.summary import candidates_table
from rosepo.config import Config
from rosepo.evaluation.candidates.free_answers import answer_limit, greedy_answers
from rosepo.evaluation.candidates.free_generation import SERIES
from rosepo.evaluation.evaluate import evaluate
from rosepo.evaluation.recommend import recommend
from rosepo.lm.cards.record import model_record
from rosepo.lm.model.model_folder import load_recommender, read_settings, save_policy
from rosepo.run.paths import RunPaths
from rosepo.utils.errors import UserError
from tests.evaluation.runs import rank_in_process, tiny_config, write_examples
from tests.helpers import tiny_catalogue, tiny_model, tiny_tokenizer, with_candidates

LISTING = ("model.template.candidates=true", "prepare.candidates=4")


def listing_run(root: Path, config: Config) -> RunPaths:
    """Examples of twelve users with candidates, and two models of random weights whose prompts are the config's."""
    catalogue = tiny_catalogue(30)
    write_examples(root, catalogue, users=12)
    path = root / "examples" / "part-00000.parquet"
    table, rng = pq.read_table(path), np.random.default_rng(0)
    lists = []
    for user, target in zip(table["user_id"].to_pylist(), table["target"].to_pylist(), strict=True):
        own = {item for row in table.to_pylist() if row["user_id"] == user for item in (*row["history"], row["target"])}
        free = np.setdiff1d(np.arange(len(catalogue)), list(own))
        lists.append(rng.permutation([target, *rng.choice(free, 3, replace=False)]).tolist())
    pq.write_table(with_candidates(table, lists), path)
    tokenizer = tiny_tokenizer(30)
    for seed, name in enumerate(("sft", "aligned")):
        save_policy(root / name, tiny_model(seed=seed), tokenizer, catalogue, model_record(config, name))
    return RunPaths(root)


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory) -> RunPaths:
    return listing_run(tmp_path_factory.mktemp("listed"), tiny_config(*LISTING))


def evaluated(config: Config, paths: RunPaths, out: Path) -> dict[str, Any]:
    out.mkdir(exist_ok=True)
    evaluate(config, paths, out)
    metrics: dict[str, Any] = json.loads((out / "metrics.json").read_text())
    return metrics


def test_every_system_is_measured_on_the_candidates_alone(listed: RunPaths, tmp_path: Path, in_process: None) -> None:
    config = tiny_config(*LISTING)
    metrics = evaluated(config, listed, tmp_path / "out")
    assert metrics["protocol"] == "candidates"
    examples = pq.read_table(listed.examples / "part-00000.parquet", filters=[("split", "==", "test")]).to_pylist()
    lists = {row["example_id"]: row["candidates"] for row in examples}
    for name in ("popular", "markov", "sft", "aligned"):
        for row in pq.read_table(tmp_path / "out" / "rankings" / f"{name}.parquet").to_pylist():
            assert sorted(row["items"]) == sorted(lists[row["example_id"]])
        assert metrics["models"][name]["hr@5"]["value"] == 1.0
    check_protocol(metrics["candidates"])
    told = candidates_table(metrics["candidates"])
    assert "free answers out of 4 candidates, 12 examples of 12 users" in told
    assert "probe: slot" in told
    check_answers(tmp_path / "out" / "answers", listed, examples)
    # What is there is not written again.
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "answers").rglob("part-*")}
    assert evaluated(config, listed, tmp_path / "out")["candidates"] == metrics["candidates"]
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "answers").rglob("part-*")}


def check_protocol(found: dict[str, Any]) -> None:
    """All that the metrics say of free answers, with intervals and differences."""
    assert (found["n_examples"], found["n_users"], found["n_candidates"]) == (12, 12, 4)
    assert set(found["models"]) == {"sft", "aligned"}
    assert set(found["probes"]) == {"chance", "slot", "item_slot", "popularity"}
    assert found["probes"]["chance"] == {"value": 0.25, "low": 0.25, "high": 0.25}
    assert set(found["differences"]) == {"aligned-sft"}
    for name in SERIES:
        before, after = (found["models"][model][name]["value"] for model in ("sft", "aligned"))
        gap = found["differences"]["aligned-sft"][name]["value"]
        assert gap is None if None in (before, after) else gap == pytest.approx(after - before)


def check_answers(folder: Path, run: RunPaths, examples: list[dict[str, Any]]) -> None:
    """Two answers of the SFT model are what the prompt with its candidates makes of it."""
    recommender = load_recommender(run.sft)
    builder = recommender.builder
    written = {row["example_id"]: row for row in pq.read_table(folder / "sft.parquet").to_pylist()}
    assert set(written) == {row["example_id"] for row in examples}
    for row in examples[::7]:
        prompt, _ = builder.prompt(row["history"], candidates=row["candidates"])
        (tokens,) = greedy_answers(
            recommender.model, [prompt], builder.eos_id, answer_limit(recommender.model, builder)
        )
        answer = written[row["example_id"]]
        assert answer["answer"] == recommender.tokenizer.decode(tokens, skip_special_tokens=True)
        assert answer["ended"] == (builder.eos_id in tokens)
        assert answer["target"] == row["target"]


def test_models_of_others_are_measured_on_candidates_whatever_they_are_called(
    listed: RunPaths, tmp_path: Path, in_process: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that reads the lists, by the name of what stands beside it in the figures, and one that knows none."""
    tokenizer, bare = tiny_tokenizer(30), tmp_path / "bare"
    save_policy(bare, tiny_model(seed=0), tokenizer, tiny_catalogue(30), model_record(tiny_config(), "sft"))
    config = tiny_config(*LISTING, f"evaluate.models=[probes={listed.sft}, {bare}]")
    found = evaluated(config, listed, tmp_path / "out")["candidates"]
    assert set(found["probes"]) == {"chance", "slot", "item_slot", "popularity"}
    assert found["models"]["probes"] == found["models"]["sft"]
    assert "  bare: its prompts list no candidates" in capsys.readouterr().err
    answers = {name: pq.read_table(tmp_path / "out" / "answers" / f"{name}.parquet") for name in ("sft", "bare")}
    assert answers["sft"]["answer"] != answers["bare"]["answer"]  # the same weights, other prompts


def test_a_model_that_needs_candidates_is_refused_before_anything_is_ranked(
    listed: RunPaths, tmp_path: Path, in_process: None
) -> None:
    run = RunPaths(tmp_path / "run")
    write_examples(run.root, tiny_catalogue(30), users=4)
    run.evaluation.mkdir()
    with pytest.raises(UserError, match=r"answers out of candidates .* and this run lists none"):
        evaluate(tiny_config(f"evaluate.models=[theirs={listed.sft}]"), run, run.evaluation)
    assert not (run.evaluation / "rankings").exists()


def test_listed_entries_of_others_that_are_no_candidates_are_told(
    listed: RunPaths, tmp_path: Path, in_process: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """A list over the whole catalogue competes with lists of candidates, and its reader should know."""
    examples = pq.read_table(listed.examples / "part-00000.parquet", filters=[("split", "==", "test")]).to_pylist()
    rows = [{"example_id": row["example_id"], "items": [*row["candidates"], row["history"][0]]} for row in examples]
    rows[0]["items"][0] = next(item for item in range(30) if item not in
                               (*examples[0]["history"], *examples[0]["candidates"]))  # fmt: skip
    ids = tiny_catalogue(30).item_ids.tolist()
    rows = [{**row, "items": [ids[item] for item in row["items"]]} for row in rows]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet")
    metrics = evaluated(
        tiny_config(*LISTING, f"evaluate.predictions=[{tmp_path / 'x.parquet'}]"), listed, tmp_path / "o"
    )
    assert metrics["external"]["x"]["unlisted_entries"] == 1
    assert metrics["external"]["x"]["seen_entries"] == 12
    assert "12 chosen before, 1 none of the example's candidates" in capsys.readouterr().err


def test_free_answers_out_of_the_catalogue_are_counted_where_asked(tmp_path: Path, in_process: None) -> None:
    config = tiny_config("evaluate.free_generation=7")
    run = listing_run(tmp_path / "run", config)
    metrics = evaluated(config, run, tmp_path / "out")
    assert "candidates" not in metrics
    assert metrics["protocol"] == "catalogue"
    for name in ("sft", "aligned"):
        answers = pq.read_table(tmp_path / "out" / "answers" / f"{name}.parquet")
        figure = metrics["models"][name]["out_of_catalogue"]
        assert (figure["n_examples"], len(answers)) == (7, 7)
        assert figure["value"] == pytest.approx(answers["item"].null_count / 7)
        assert figure["low"] <= figure["value"] <= figure["high"]
    gap = metrics["differences"]["aligned-sft"]["out_of_catalogue"]
    assert gap["n_users"] == 7
    plain = evaluated(tiny_config(), run, tmp_path / "without")
    assert "out_of_catalogue" not in plain["models"]["sft"]
    assert not (tmp_path / "without" / "answers").exists()


def test_a_model_remembers_that_its_prompts_list_candidates_and_asks_for_them(
    listed: RunPaths, tmp_path: Path, in_process: None
) -> None:
    assert read_settings(listed.sft)["template"]["candidates"] is True
    assert "candidates = [" in (listed.sft / "README.md").read_text()
    with pytest.raises(UserError, match=r"answers out of candidates that its prompts list.*recommend has a history"):
        recommend(tiny_config(), str(listed.sft), ["Night (1980)"], None, None, False)
    with pytest.raises(UserError, match="these examples have none"):
        evaluated(tiny_config(), listed, tmp_path / "out")


@pytest.mark.slow  # rankings, made by the same code, hold this in tests/evaluation/test_evaluate.py
def test_two_actors_write_the_answers_that_one_writes(
    listed: RunPaths, tmp_path: Path, ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = evaluated(tiny_config(*LISTING, "evaluate.actors=2", "evaluate.batch_size=4"), listed, tmp_path / "two")
    with monkeypatch.context() as patch:
        rank_in_process(patch.setattr)
        alone = evaluated(tiny_config(*LISTING, "evaluate.batch_size=4"), listed, tmp_path / "one")
    assert found == alone
    for name in ("sft", "aligned"):
        one, two = (pq.read_table(tmp_path / count / "answers" / f"{name}.parquet") for count in ("one", "two"))
        assert one.equals(two)
        assert len(list((tmp_path / "two" / "answers" / f"{name}.parquet").glob("part-*"))) == 3
