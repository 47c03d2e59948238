"""Trials that train with workers of their own are measured beside them."""

from __future__ import annotations

from pathlib import Path

import pytest

from rosepo.run.paths import RunPaths
from rosepo.tuning.sweep import sweep
from tests.training.tiny_run import tiny_config


@pytest.mark.slow
def test_trials_with_a_trainer_are_measured_as_those_in_one_process(
    run: RunPaths, tiny_run: RunPaths, ray_cluster: None, tmp_path: Path
) -> None:
    whole, found = RunPaths(tmp_path / "run"), {}
    whole.root.mkdir()
    for here, there in ((whole.examples, tiny_run.examples), (whole.sft, run.sft), (whole.groups, run.groups)):
        here.symlink_to(there)
    for mode in ("process", "trainer"):
        settings = {"trials": 1, "parameters": {"align.beta": [0.5]}, "max_groups": 16, "max_examples": 20}
        config = tiny_config("align", other={"sweep": {**settings, "mode": mode}})
        (tmp_path / mode).mkdir()
        found[mode] = sweep(config, whole, tmp_path / mode)
        (trial,) = found[mode]["trials"]
        assert "error" not in trial, trial
        assert 0 <= trial["ndcg@10"] <= trial["hr@10"] <= 1
    assert found["process"]["sft"] == found["trainer"]["sft"]
    same = [found[mode]["trials"][0]["ndcg@10"] for mode in found]
    assert same[0] == pytest.approx(same[1], abs=0.05)
