"""Two rounds of pairs and alignment, end to end: what is made again, what is reused, and what people are told."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from rosepo.cli.summary import print_next, print_summary
from rosepo.config import Config
from rosepo.lm.model.model_folder import load_recommender
from rosepo.lm.rows.plain_rows import plain_logps
from rosepo.pipeline.planning import plan_run
from rosepo.pipeline.runner import run_stages
from rosepo.run.manifest import read_manifest
from rosepo.run.paths import RunPaths
from rosepo.run.stages import names_of_run
from rosepo.sampling.audit import audit_groups
from tests.pipeline.test_whole_run import configure, write_log

FIRST = ["prepare", "sft", "oracle", "pairs", "align"]
LATER = ["pairs-2", "align-2", "evaluate"]


def settings(folder: Path, **pairs: object) -> Config:
    """Short training that moves the model far; every rejected title is the sampling model's best wrong answer."""
    hardest = {"strategies": {"self_hard": 1.0}, "self_hard_top": 1, "negatives": 1, "encoder": "tfidf"}
    return configure(
        folder,
        sft={"workers": 1},
        oracle={"folds": 1, "max_epochs": 1},
        pairs={**hardest, "groups_per_user": 1, **pairs},
        align={"workers": 1, "zero_stage": 1, "epochs": 3, "learning_rate": 1e-2, "beta": 0.1},
        sweep={"trials": 0},
    )


def times(out: Path) -> dict[Path, int]:
    """When the files of the first round were written."""
    folders = ("examples", "sft", "oracle", "groups", "aligned")
    return {path: path.stat().st_mtime_ns for folder in folders for path in (out / folder).rglob("*")}


pytestmark = pytest.mark.slow  # whole runs; tests/training/test_rounds.py holds what a round trains on


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Path:
    """A log, and a run of its first round."""
    folder = tmp_path_factory.mktemp("rounds")
    write_log(folder)
    run_stages(plan_run(settings(folder), folder / "out", FIRST))
    return folder


@pytest.mark.parametrize(("reference", "compared_with"), [("frozen", "sft"), ("moved", "aligned")])
def test_the_second_round_goes_on_from_the_first_under_its_reference(
    folder: Path, reference: str, compared_with: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out, config = folder / "out", settings(folder, rounds=2, reference=reference)
    before = times(out)
    plan = plan_run(config, out, names_of_run(config), overwrite=True)
    manifests = run_stages(plan)
    told = capsys.readouterr().err
    assert times(out) == before
    for stage in LATER:
        assert f"{stage}: up to date" not in told
    for words in ("pairs-2: sample rejected titles, round 2", "align-2: align with preferences, round 2"):
        assert words in told
    assert audit_groups(out / "groups-2", out / "examples")["groups"] == 60
    sampler, scorer = load_recommender(out / "aligned"), load_recommender(out / compared_with)
    assert wrong_answers(out / "groups-2", sampler) > 0.9
    assert wrong_answers(out / "groups-2", load_recommender(out / "sft")) < 0.9
    for row in pq.read_table(out / "groups-2").to_pylist()[::7]:
        ids = [np.array(ids) for ids in (row["chosen_ids"], *row["rejected_ids"])]
        with torch.inference_mode():
            expected = plain_logps(scorer.model, [np.array(row["prompt_ids"])] * 2, ids)[0]
        np.testing.assert_allclose(row["ref_logps"], expected.numpy(), atol=1e-3)
    print_summary(plan, manifests)
    check_what_is_told(config, out, capsys)


def wrong_answers(groups: Path, recommender: object) -> float:
    """Share of groups that reject the model's likeliest title outside history and target, found by scoring all."""
    model, builder, catalogue = recommender.model, recommender.builder, recommender.catalogue  # type: ignore[attr-defined]
    examples = {row["example_id"]: row for row in pq.read_table(groups.parent / "examples").to_pylist()}
    hits = []
    for row in pq.read_table(groups).to_pylist()[::2]:
        history = examples[row["example_id"]]["history"]
        allowed = np.setdiff1d(np.arange(len(catalogue)), [*history, row["chosen_item"]])
        titles = [builder.completion(item) for item in allowed]
        with torch.inference_mode():
            scores = plain_logps(model, [np.array(row["prompt_ids"])] * len(titles), titles)[0]
        hits.append(allowed[int(scores.argmax())] == row["rejected_items"][0])
    return float(np.mean(hits))


def check_what_is_told(config: Config, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Manifests, report, the summary that was printed, and the commands that come next name the rounds."""
    assert set(json.loads((out / "manifest.json").read_text())["stages"]) == {*FIRST, *LATER}
    evaluated = read_manifest(out / "evaluation")
    assert evaluated is not None
    assert {"align", "align-2"} <= set(evaluated["inputs"])
    report = (out / "report.html").read_text()
    reference = "the SFT model, frozen" if config.pairs.reference == "frozen" else "the model that each round starts"
    assert f"2, each sampled from the model of the one before; reference: {reference}" in report
    assert "Alignment, round 2: loss a group" in report
    print_next(config, out, "align")
    told = capsys.readouterr().err
    for number in (1, 2):
        groups, aligned = (read_manifest(folder) for folder in rounds(out, number))
        assert groups is not None
        assert aligned is not None
        shown = [f"{value:.3f}" for value in (groups["figures"]["epsilon_mean"], aligned["figures"]["margin"])]
        assert any(line.split()[:1] == [str(number)] and set(shown) <= set(line.split()) for line in told.splitlines())
    assert f"Model    {out / 'aligned-2'}" in told
    assert "rosepo pairs --round 2 --out" in told


def rounds(out: Path, number: int) -> tuple[Path, Path]:
    outputs = RunPaths(out, number)
    return outputs.groups, outputs.aligned
