"""A whole run in the candidate protocol, from the log to the metrics."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from rosepo.cli.check import check_groups
from rosepo.config import Config
from rosepo.lm.model.model_folder import read_settings
from rosepo.pipeline.planning import plan_run
from rosepo.pipeline.runner import run_stages
from rosepo.run.manifest import read_manifest
from tests.pipeline.test_whole_run import N_USERS, configure, write_log

STAGES = ["prepare", "sft", "oracle", "pairs", "align", "evaluate"]

# Its stages one by one are held by tests/training, sampling and evaluation/candidates.
pytestmark = pytest.mark.slow


def settings(folder: Path, **evaluate: object) -> Config:
    return configure(
        folder,
        prepare={"candidates": 5},
        model={"max_length": 256, "template": {"candidates": True}},
        sft={"workers": 1, "epochs": 40, "learning_rate": 5e-3},
        oracle={"folds": 1, "max_epochs": 1},
        pairs={"strategies": {"self_hard": 1.0}, "groups_per_user": 2, "negatives": 2},
        align={"workers": 1, "zero_stage": 1, "epochs": 1, "loss": "sdpo"},
        evaluate=evaluate,
        sweep={"trials": 0},
    )


def test_a_run_in_the_candidate_protocol_ends_with_its_figures(
    tmp_path: Path, ray_cluster: None, capsys: pytest.CaptureFixture[str]
) -> None:
    write_log(tmp_path)
    out, config = tmp_path / "out", settings(tmp_path)
    run_stages(plan_run(config, out, STAGES))
    sft = read_manifest(out / "sft")
    assert sft is not None
    train = pq.read_table(out / "examples")["split"].to_pylist().count("train")
    assert sft["figures"]["examples"] == train
    lists = {row["example_id"]: row["candidates"] for row in pq.read_table(out / "examples").to_pylist()}
    for row in pq.read_table(out / "groups").to_pylist():
        assert set(row["rejected_items"]) < set(lists[row["example_id"]])
    for name in ("sft", "aligned"):
        assert read_settings(out / name)["template"]["candidates"] is True
    metrics = json.loads((out / "metrics.json").read_text())
    found = metrics["candidates"]
    assert (metrics["protocol"], found["n_examples"], found["n_candidates"]) == ("candidates", N_USERS, 5)
    for figures in found["models"].values():
        for rule in ("", "_substring"):
            assert figures[f"hr@1{rule}"]["value"] <= figures[f"valid_ratio{rule}"]["value"] <= 1.0
    assert found["probes"]["chance"]["value"] == pytest.approx(0.2)
    assert found["differences"]["aligned-sft"]["hr@1"].keys() == {"value", "low", "high"}
    # Chance finds the right one of five in a fifth of the lists; SFT has learned more.
    assert metrics["models"]["sft"]["hr@1"]["low"] > 0.2
    check_groups(out / "groups")
    assert "no fault found" in capsys.readouterr().err
    # The number of actors changes no figure.
    assert not plan_run(settings(tmp_path, actors=2), out, STAGES).left
    more = tmp_path / "more"
    more.mkdir()
    for entry in ("examples", "sft", "oracle", "groups", "aligned", "manifest.json"):
        (more / entry).symlink_to(out / entry)
    run_stages(plan_run(settings(tmp_path, actors=2), more, ["evaluate"]))
    assert json.loads((more / "metrics.json").read_text()) == metrics
