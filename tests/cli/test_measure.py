"""`rosepo check --measure`: what is told of the stages, from real ones of a few users."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from rosepo.cli.measure import SECONDS, Pace, Sample, _shortened, paces_text
from rosepo.config import load_config, replaced
from rosepo.config.auto import LogFacts
from rosepo.pipeline.chosen_settings import settled
from tests.pipeline.test_one_command import write_log

PACES = {
    "prepare": Pace(0.0, 20.0),
    "sft": Pace(30.0, 12.0, 60.0),
    "oracle": Pace(20.0, 10.0, 200.0),
    "align": Pace(30.0, 100.0, 2.0),
}


def test_passes_that_a_budget_has_room_for_are_its_share_by_what_one_takes() -> None:
    told = paces_text(load_config(None, ["run.budget=10m"]), Sample(256, 938), PACES)
    assert re.search(r"run\.budget=10m\s+12\.0\s+20\.0\s+1\.5\n", told)
    assert re.search(r"run\.budget=20m\s+24\.0\s+40\.0\s+all 2\n", told)
    assert re.search(r"sft\s+0:30\s+0:12\s+60\s+12:30\n", told)


def test_a_training_takes_its_start_and_its_passes() -> None:
    assert PACES["align"].in_all == 230.0
    assert Sample(256, 512).times == 2.0


@pytest.mark.parametrize(
    "settings",
    [
        ["pairs.rounds=3", "pairs.reference=moved"],
        ["pairs.stream=true", "align.patience=2", "align.best_metric=validation_loss"],
        ["sweep.trials=4", "evaluate.models=[a/b]"],
        ["model.path=some/model", "run.budget=30m"],
    ],
)
def test_a_short_run_can_be_made_of_whatever_a_long_one_is(settings: list[str]) -> None:
    config, _ = settled(load_config(None, settings), LogFacts(938, 1008, 49_000, 938, 1_900))
    short = replaced(config, _shortened(config), "check --measure")
    assert (short.pairs.rounds, short.sweep.trials, short.evaluate.models) == (1, 0, ())
    assert short.sft.max_seconds == short.align.max_seconds == SECONDS
    assert short.sft.patience is short.align.patience is None


@pytest.mark.slow
def test_every_stage_is_measured_and_nothing_stays(tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "rosepo", "check", *write_log(tmp_path), "--out", str(out), "--measure"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    told = done.stderr[done.stderr.index("measured with 256 of") :]
    for stage in ("prepare", "sft", "oracle", "pairs", "align", "evaluate", "in all"):
        assert re.search(rf"  {stage} .*\d:\d\d\n", told), told
    assert "run.budget=30m" in told
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".csv"] == []
