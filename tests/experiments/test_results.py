"""Figures of several runs: against slow loops, against the evaluation's own, and as people read them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from rosepo.evaluation.evaluate_rankings import evaluate_rankings
from rosepo.experiments.pooled_metrics import METRICS, Pool, read_measured
from rosepo.experiments.results import verdict, write_results
from rosepo.experiments.results_page import DRAWN, LEFT_OUT
from rosepo.experiments.runs import FAILURE_FILE, Run, plan_of, runs_of
from rosepo.experiments.stage_reuse import link_rankings
from rosepo.experiments.suite import Experiments, read_suites
from rosepo.run.paths import RunPaths
from rosepo.utils.files import write_json
from tests.experiments.evaluated import CATALOGUE, evaluate_run
from tests.experiments.suites import SUITE, changed, write_suite

VARIANTS = {
    "dpo": {"about": "plain | DPO", "set": {"align.loss": "dpo"}},
    "cdpo": {"like": "dpo", "set": {"align.loss": "cdpo", "align.epsilon_value": 0.1}},
    "own-oracle": {"set": {"oracle.folds": 3}},
    "late": {"like": "dpo", "set": {"align.beta": 0.5}},
    "broken": {"like": "dpo", "set": {"pairs.negatives": 99}},
}
CONTRASTS = [
    {"question": "Is a strong model better?", "a": "cdpo", "b": "dpo", "metrics": ["hr@10", "log_popularity"]},
    {"question": "And the other way round?", "a": "dpo", "b": "cdpo", "metrics": ["ndcg@10"]},
    {"question": "Its own oracle?", "a": "own-oracle:oracle", "b": "oracle"},
    {"question": "Its SFT model?", "a": "dpo", "b": "cdpo:sft"},
    {"question": "Later?", "a": "late", "b": "dpo"},
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Experiments, list[Run], dict[str, Any], str]:
    """Suite, runs, `results.json` and `results.md`: two seeds, one run that failed, one that has one seed alone."""
    folder = tmp_path_factory.mktemp("suite")
    text = changed(SUITE, variants=VARIANTS, contrasts=CONTRASTS, comparators=["sft", "dpo"])
    asked = read_suites([write_suite(folder, text)])
    runs = runs_of(asked.experiments, folder / "out")
    strengths = {"dpo": 0.5, "cdpo": 4.0, "own-oracle": 1.0}
    for run in runs:
        name = run.experiment.variant
        if name in strengths:
            evaluate_run(run, strengths[name], own={"oracle": name} if name == "own-oracle" else {})
        elif name == "late" and run.seed == 0:
            evaluate_run(run, 9.0)
        elif name == "broken":
            run.folder.mkdir()
            write_json(run.folder / FAILURE_FILE, {"error": "pairs.negatives=99 is more than the catalogue allows"})
    write_results(asked, runs, folder / "out", resamples=200)
    found = json.loads((folder / "out" / "results.json").read_text())
    return asked, runs, found, (folder / "out" / "results.md").read_text()


def test_pooled_intervals_are_those_of_a_slow_loop_over_users() -> None:
    rng = np.random.default_rng(3)
    users = {0: np.array([4, 4, 7, 9, 9, 9]), 1: np.array([9, 7, 4, 4])}
    systems = {name: {seed: {"m": rng.random(len(users[seed]))} for seed in (0, 1)} for name in ("a", "b")}
    systems["a"][0]["m"][1] = np.nan
    pool = Pool(users, systems, resamples=400)
    drawn = np.random.default_rng([0, 3]).integers(0, 3, size=(400, 3))

    def mean(name: str, chosen: list[int]) -> float:
        values = [
            value
            for user in chosen
            for seed in (0, 1)
            for owner, value in zip(users[seed], systems[name][seed]["m"])
            if owner == user and not np.isnan(value)
        ]
        return sum(values) / len(values)

    names = [4, 7, 9]
    loops = {name: [mean(name, [names[place] for place in row]) for row in drawn] for name in ("a", "b")}
    for name in ("a", "b"):
        found = pool.mean(name, "m")
        assert found.value == pytest.approx(mean(name, names))
        assert [found.low, found.high] == pytest.approx(np.quantile(loops[name], [0.025, 0.975]).tolist())
    differences = np.subtract(loops["a"], loops["b"])
    paired = pool.difference("a", "b", "m")
    assert paired.value == pytest.approx(mean("a", names) - mean("b", names))
    assert [paired.low, paired.high] == pytest.approx(np.quantile(differences, [0.025, 0.975]).tolist())


def test_systems_are_compared_over_the_seeds_that_both_have() -> None:
    users = {0: np.arange(5), 1: np.arange(5), 2: np.arange(5)}
    values = {seed: {"m": np.full(5, float(seed))} for seed in users}
    pool = Pool(users, {"a": {0: values[0], 2: values[2]}, "b": {1: values[1], 2: values[2]}, "c": {1: values[1]}}, 100)
    assert pool.difference("a", "b", "m").value == 0.0
    assert pool.seeds("a", "c") == ()
    assert pool.mean("a", "m").value == 1.0
    assert pool.by_seed("b", "m") == {1: 1.0, 2: 2.0}


def test_figures_are_those_of_the_evaluation(finished: tuple[Experiments, list[Run], dict[str, Any], str]) -> None:
    run = finished[1][0]
    models = ["popular", "markov", "oracle", "sft", "aligned"]
    inputs, config = RunPaths(run.folder), run.config()
    examples = inputs.evaluation / "_examples.parquet"
    expected, _ = evaluate_rankings(config, inputs, CATALOGUE, examples, inputs.evaluation / "rankings", models)
    found = read_measured(run.folder, config, models).systems
    for name in models:
        for key in METRICS:
            assert np.nanmean(found[name][key]) == pytest.approx(expected["models"][name][key]["value"], abs=1e-6)
    for key, figure in expected["truth"].items():
        if key in found["truth"]:
            assert np.nanmean(found["truth"][key]) == pytest.approx(figure["value"], abs=1e-6)


def test_an_oracle_that_variants_share_is_one_row(tmp_path: Path) -> None:
    variants = {name: {} for name in ("dpo", "cdpo", "ipo", "sdpo")}
    variants |= {name: {"set": {"oracle.folds": 3}} for name in ("first", "second", "third")}
    contrasts = [{"question": "Any oracle?", "a": "third:oracle", "b": "oracle", "metrics": ["hr@10"]}]
    asked = read_suites([write_suite(tmp_path, changed(SUITE, variants=variants, contrasts=contrasts, comparators=[]))])
    runs = runs_of(asked.experiments, tmp_path / "out")
    for run in runs:
        name = run.experiment.variant
        if (run.seed, name) != (1, "first"):  # the other seed knows it from the second variant alone
            own = {"oracle": "in sample"} if name in ("first", "second", "third") else {}
            evaluate_run(run, 1.0, own=own)
    section = write_results(asked, runs, tmp_path / "out", resamples=100)["data"]["ring"]["validation"]
    assert [name for name in section["systems"] if ":" in name] == ["first:oracle"]
    assert section["systems"]["first:oracle"]["seeds"] == [0, 1]
    (answer,) = section["contrasts"]
    assert len(answer["metrics"]["hr@10"]["by_seed"]) == 2


def test_the_oracle_of_the_first_variant_is_the_baseline_however_many_have_another(tmp_path: Path) -> None:
    variants = {name: {} if name == "dpo" else {"set": {"oracle.folds": 3}} for name in ("late", "dpo", "cdpo", "ipo")}
    asked = read_suites([write_suite(tmp_path, changed(SUITE, variants=variants, contrasts=[]))])
    runs = runs_of(asked.experiments, tmp_path / "out")
    for run in runs:
        name = run.experiment.variant
        if (run.seed, name) != (1, "late"):  # a variant of fewer seeds is not the first one, wherever it stands
            evaluate_run(run, 1.0, own={} if name == "dpo" else {"oracle": "in sample"})
    section = write_results(asked, runs, tmp_path / "out", resamples=100)["data"]["ring"]["validation"]
    assert [name for name in section["systems"] if ":" in name] == ["late:oracle"]
    assert section["systems"]["oracle"]["seeds"] == section["systems"]["late:oracle"]["seeds"] == [0, 1]


def test_rows_are_means_over_seeds_with_costs(finished: tuple[Experiments, list[Run], dict[str, Any], str]) -> None:
    _, runs, results, _ = finished
    section = results["data"]["ring"]["validation"]
    assert (section["n_users"], section["n_examples"], section["seeds"]) == (40, 40, [0, 1])
    assert [*section["systems"]] == [
        *("popular", "markov", "oracle", "sft", "own-oracle:oracle", "dpo", "cdpo", "own-oracle", "late")
    ]
    row = section["systems"]["dpo"]
    of_seeds = [read_measured(run.folder, run.config(), ["aligned"]) for run in runs if run.experiment.variant == "dpo"]
    for key in METRICS:
        values = np.concatenate([measured.systems["aligned"][key] for measured in of_seeds])
        assert row["metrics"][key]["value"] == pytest.approx(np.nanmean(values))
        assert row["metrics"][key]["low"] <= row["metrics"][key]["value"] <= row["metrics"][key]["high"]
    assert (row["own_seconds"], row["seconds"], row["tokens"]) == (20.0, 50.0, 1000)
    assert (section["systems"]["sft"]["own_seconds"], section["systems"]["sft"]["seconds"]) == (10.0, 20.0)
    assert section["systems"]["late"]["seeds"] == [0]


def test_a_variant_that_lacks_a_seed_is_not_the_chosen_one(
    finished: tuple[Experiments, list[Run], dict[str, Any], str],
) -> None:
    section = finished[2]["data"]["ring"]["validation"]
    rows = section["systems"]
    assert rows["late"]["metrics"]["ndcg@10"]["value"] > rows["cdpo"]["metrics"]["ndcg@10"]["value"]
    assert section["chosen"] == "cdpo"


def test_questions_are_answered_from_paired_intervals(
    finished: tuple[Experiments, list[Run], dict[str, Any], str],
) -> None:
    section = finished[2]["data"]["ring"]["validation"]
    strong, other, oracle, sft, late = section["contrasts"]
    assert strong["metrics"]["hr@10"]["verdict"] == "better"
    assert strong["metrics"]["hr@10"]["low"] > 0
    assert [*strong["metrics"]["hr@10"]["by_seed"]] == ["0", "1"]
    assert other["metrics"]["ndcg@10"]["verdict"] == "worse"
    against = section["against"]["dpo"]["cdpo"]["ndcg@10"]
    assert other["metrics"]["ndcg@10"]["value"] == pytest.approx(-against["value"])
    assert oracle["metrics"]["ndcg@10"]["verdict"] == "better"
    assert sft["metrics"]["ndcg@10"]["value"] == pytest.approx(section["against"]["sft"]["dpo"]["ndcg@10"]["value"])
    assert late["seeds"] == [0]


def test_verdicts_name_a_difference_only_where_it_is_clear_of_zero() -> None:
    assert verdict("hr@10", {"value": 0.1, "low": -0.1, "high": 0.2}) == "no difference seen"
    assert verdict("hr@10", {"value": 0.15, "low": 0.1, "high": 0.2}) == "better"
    assert verdict("log_popularity", {"value": -0.25, "low": -0.3, "high": -0.2}) == "lower"
    assert verdict("hallucination", {"value": None, "low": None, "high": None}) == "could not be measured"


def test_a_verdict_that_a_seed_speaks_against_says_so() -> None:
    clear = {"value": 0.15, "low": 0.1, "high": 0.2}
    assert verdict("hr@10", {**clear, "by_seed": {0: 0.4, 1: 0.1, 2: None}}) == "better"
    assert verdict("hr@10", {**clear, "by_seed": {0: 0.4, 1: -0.1}}) == "better, but not in every seed"
    lower, none = {"value": -1.5, "low": -2, "high": -1}, {"value": 0.1, "low": -0.1, "high": 0.2}
    assert verdict("log_popularity", {**lower, "by_seed": {0: 0.0}}) == "lower, but not in every seed"
    assert verdict("hr@10", {**none, "by_seed": {0: 0.4, 1: -0.1}}) == "no difference seen"


def test_the_page_tells_everything(finished: tuple[Experiments, list[Run], dict[str, Any], str]) -> None:
    _, _, results, page = finished
    assert results["missing"] == ["ring, seed 1, late"]
    assert [*results["failed"]] == ["ring, seed 0, broken", "ring, seed 1, broken"]
    for words in (
        "## ring, validation split: 40 examples of 40 users, seeds 0, 1",
        "| **cdpo** | 2 |",
        "plain \\| DPO",
        "### Minus sft",
        "### Minus dpo",
        "| Is a strong model better? | cdpo − dpo | HR@10 |",
        "- ring, seed 0, broken: pairs.negatives=99 is more than the catalogue allows",
        "- ring, seed 1, late",
        "the values by seed tell that",
        " | NDCG@10 by seed | ",
        "--data DATA --seeds SEED --only SYSTEM --out DIR`, with `--test`",
    ):
        assert words in page
    rows = results["data"]["ring"]["validation"]
    counted = 6 * sum(row is not None for against in rows["against"].values() for row in against.values())
    assert f"{counted + 2 + 1 + 2 + 2 + 2} differences are measured below." in page
    tables = [line for line in page.splitlines() if line.startswith("|")]
    assert len({line.replace("\\|", "").count("|") for line in tables}) <= 3  # one width a kind of table


def test_the_page_shows_a_picture_with_a_mark_for_every_system_and_measure(
    finished: tuple[Experiments, list[Run], dict[str, Any], str],
) -> None:
    _, runs, results, page = finished
    assert "![ring, validation: every system minus sft](ring-validation.svg)" in page
    root = ElementTree.parse(runs[0].out / "ring-validation.svg").getroot()
    compared = {*results["data"]["ring"]["validation"]["against"]["sft"]} - {*LEFT_OUT}
    uses = root.iter("{http://www.w3.org/2000/svg}use")
    marks = [use for use in uses if "stroke-width: 1.6" in use.get("style", "")]
    assert compared
    assert len(marks) == len(compared) * len(DRAWN)


def test_trials_of_a_sweep_stand_in_the_page_best_first(tmp_path: Path) -> None:
    asked = read_suites([write_suite(tmp_path, changed(SUITE, data={"ring": {"base": "base.yaml"}}))])
    runs = runs_of(asked.experiments, tmp_path / "out")
    evaluate_run(runs[0], 1.0)
    trials = [
        {"trial": 0, "settings": {"align.beta": 0.1}, "hr@10": 0.2, "ndcg@10": 0.1, "loss": 0.6, "seconds": 61.0},
        {"trial": 1, "settings": {"align.beta": 1.0}, "hr@10": 0.2, "ndcg@10": 0.3, "loss": 0.6, "seconds": 59.0},
        {"trial": 2, "settings": {"align.beta": 9.0}, "error": "the loss is nan"},
    ]
    before = {"hr@10": 0.2, "ndcg@10": 0.15}
    (runs[0].folder / "sweep").mkdir()
    write_json(runs[0].folder / "sweep" / "trials.json", {"metric": "ndcg@10", "sft": before, "trials": trials})
    results = write_results(asked, runs, tmp_path / "out", resamples=100)
    assert results["sweeps"]["ring, seed 0, dpo"]["trials"] == trials
    lines = (tmp_path / "out" / "results.md").read_text().partition("## Sweep of ring, seed 0, dpo")[2].splitlines()
    rows = [[cell.strip(" *") for cell in line.split("|")[1:-1]] for line in lines if line.startswith("|")][2:]
    assert rows == [
        ["SFT, before", "", "0.200", "0.150", ""],
        ["1", "1.0", "0.200", "0.300", "0:59"],
        ["0", "0.1", "0.200", "0.100", "1:01"],
        ["2", "9.0", "failed: the loss is nan", "", ""],
    ]


def test_a_run_of_other_settings_is_no_result(
    finished: tuple[Experiments, list[Run], dict[str, Any], str], tmp_path: Path
) -> None:
    asked, runs, _, _ = finished
    results = write_results(asked, runs, tmp_path, ["align.beta=0.25", "data.interactions=elsewhere.csv"], 100)
    assert "ring" not in results["data"]
    told = results["failed"]["ring, seed 0, dpo"]
    assert "was made with other settings (align.beta: 0.5 → 0.25): --overwrite" in told
    moved = write_results(asked, runs, tmp_path, ["data.interactions=elsewhere.csv"], 100)
    assert moved["data"]["ring"]["validation"]["seeds"] == [0, 1]


def test_what_made_the_runs_is_told_and_not_what_wrote_the_tables(tmp_path: Path) -> None:
    asked = read_suites([write_suite(tmp_path, changed(SUITE, data={"ring": {"base": "base.yaml"}}))])
    runs = runs_of(asked.experiments, tmp_path / "out")[:2]
    for run, revision, torch in zip(runs, ("aaa", "bbb+"), ("2.0", "2.1")):
        evaluate_run(run, 1.0)
        path = run.folder / "aligned" / "_manifest.json"
        made = {"revision": revision, "versions": {"torch": torch, "rosepo": "0.1"}}
        write_json(path, {**json.loads(path.read_text()), **made})
    results = write_results(asked, runs, tmp_path / "out", resamples=100)
    assert results["revisions"] == ["aaa", "bbb+"]
    assert results["versions"] == {"torch": "2.0 and 2.1", "rosepo": "0.1"}
    page = (tmp_path / "out" / "results.md").read_text()
    assert "revision aaa and bbb+" in page
    assert "made by more than one revision" in page
    alone = write_results(asked, runs[:1], tmp_path / "out", resamples=100)
    assert alone["revisions"] == ["aaa"]
    assert "more than one revision" not in (tmp_path / "out" / "results.md").read_text()


def test_a_finished_run_whose_settings_are_none_any_more_does_not_keep_the_others_from_the_page(
    finished: tuple[Experiments, list[Run], dict[str, Any], str], tmp_path: Path
) -> None:
    asked, runs, _, _ = finished
    odd = [
        replace(run, experiment=replace(run.experiment, settings={"align.bta": 1}))
        if run.experiment.variant == "dpo"
        else run
        for run in runs
    ]
    results = write_results(asked, odd, tmp_path, resamples=100)
    assert "did you mean 'beta'" in results["failed"]["ring, seed 0, dpo"]
    assert "cdpo" in results["data"]["ring"]["validation"]["systems"]


def test_an_evaluation_that_is_older_than_its_model_is_no_result(tmp_path: Path) -> None:
    asked = read_suites([write_suite(tmp_path, changed(SUITE, data={"ring": {"base": "base.yaml"}}))])
    runs = runs_of(asked.experiments, tmp_path / "out")[:2]
    for run in runs:
        evaluate_run(run, 1.0)
    path = runs[1].folder / "aligned" / "_manifest.json"
    write_json(path, {**json.loads(path.read_text()), "fingerprint": "made again"})
    results = write_results(asked, runs, tmp_path / "out", resamples=100)
    assert "align was made again after the evaluation" in results["failed"]["ring, seed 0, cdpo"]
    assert "cdpo" not in results["data"]["ring"]["validation"]["systems"]


def test_rankings_of_the_same_models_are_lent_to_an_evaluation(tmp_path: Path) -> None:
    asked = read_suites([write_suite(tmp_path, changed(SUITE, variants=VARIANTS, contrasts=[], comparators=[]))])
    runs = [run for run in runs_of(asked.experiments, tmp_path / "out", test=True) if run.seed == 0]
    first = runs[0]
    evaluate_run(first, 1.0)
    of_first = plan_of(first, first.config(), overwrite=True)["evaluate"].inputs
    manifest = json.loads((first.folder / "evaluation" / "_manifest.json").read_text())
    write_json(first.folder / "evaluation" / "_manifest.json", {**manifest, "inputs": of_first})
    lent = {run.folder.name: link_rankings(run, plan_of(run, run.config())) for run in runs[1:] if run != first}
    assert lent["cdpo"] == ["popular", "markov", "oracle", "sft"]
    assert lent["own-oracle"] == ["popular", "markov", "sft"]
    assert lent["dpo.test"] == []
    (partial,) = (runs[1].folder).glob(".evaluation.*.partial")
    there = {path.name: path for path in (partial / "rankings" / "sft.parquet").iterdir()}
    for path in (first.folder / "evaluation" / "rankings" / "sft.parquet").iterdir():
        assert there[path.name].samefile(path)


def test_runs_on_other_examples_are_left_out(tmp_path: Path) -> None:
    asked = read_suites([write_suite(tmp_path, changed(SUITE, data={"ring": {"base": "base.yaml"}}))])
    runs = runs_of(asked.experiments, tmp_path / "out")
    evaluate_run(runs[0], 1.0)
    evaluate_run(runs[1], 1.0, users=30)
    section = write_results(asked, runs, tmp_path / "out", resamples=100)["data"]["ring"]["validation"]
    assert section["evaluated_on_other_examples"] == ["ring, seed 0, cdpo"]
    assert "cdpo" not in section["systems"]
