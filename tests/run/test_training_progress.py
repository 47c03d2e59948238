"""What is told of a training from the start of its workers to its last step."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from rosepo.run import training_progress as progress
from rosepo.run.paths import RunPaths
from rosepo.run.training_progress import PROGRESS_FILE, ProgressTeller, TrainingProgress
from rosepo.training.feed.feed import micro_batches
from rosepo.training.rank import fit_in_process, train_rank
from rosepo.training.sft import sft_task
from rosepo.utils.console import Progress
from tests.training.tiny_run import tiny_config


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step is as long as a large model's."""
    monkeypatch.setattr(progress, "INTERVAL", 0.0)


def test_a_training_tells_of_every_slow_step_though_metrics_come_seldom(
    tiny_run: RunPaths, tmp_path: Path, slow: None
) -> None:
    from rosepo.training.engine import prepare_process

    task = sft_task(tiny_config(log_every=100, epochs=0.5, validate_every=1000), tiny_run)
    prepare_process()
    train_rank(task, micro_batches(task.plan, 0, 1), tmp_path)
    steps = task.plan.schedule.steps
    told = [json.loads(line) for line in (tmp_path / PROGRESS_FILE).read_text().splitlines()]
    assert told[0] == {"doing": "loading the model"}
    assert told[1] == {"begin": 0, "total": steps, "doing": "first step"}
    assert [line["step"] for line in told if "step" in line] == list(range(1, steps + 1))
    assert told[-1] == {"doing": "saving the model"}
    assert told[-2]["figures"]["loss"] > 0


def test_nothing_of_it_is_left_behind(tiny_run: RunPaths, tmp_path: Path) -> None:
    fit_in_process(sft_task(tiny_config(epochs=0.2), tiny_run), tmp_path)
    assert not (tmp_path / PROGRESS_FILE).exists()
    with TrainingProgress(Progress("sft", 3), tmp_path, 1):
        ProgressTeller(tmp_path).begin(0, 3)
    assert not (tmp_path / PROGRESS_FILE).exists()


def test_the_line_begins_with_the_workers_and_goes_on_where_one_was_lost(
    tmp_path: Path, slow: None, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / PROGRESS_FILE).write_text('{"step": 7, "figures": {}, "total": null}\n')  # of a job that was killed
    with TrainingProgress(Progress("sft", 10, before=4), tmp_path, 2, lambda line: {"loss": line["loss"]}) as told:
        told.starting()
        first = ProgressTeller(tmp_path)
        first.doing("loading the model")
        first.begin(4, 10)
        first.step(5, {"loss": 3.0, "grad_norm": 1.0})
        first.step(6, {"loss": 2.5, "grad_norm": 1.0})
        again = ProgressTeller(tmp_path)
        again.begin(5, 10)
        for step in range(6, 11):
            again.step(step, {"loss": 2.0, "grad_norm": 1.0})
    lines = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"  sft 4/10 · starting 2 workers · \d:\d\d elapsed", lines[0])
    assert re.fullmatch(r"  sft 4/10 · loading the model · \d:\d\d elapsed", lines[1])
    assert re.fullmatch(r"  sft 4/10 · first step · \d:\d\d elapsed", lines[2])
    assert re.fullmatch(r"  sft 10/10 · \d:\d\d in all · [\d,.]+ (steps/s|s/step) · loss 2", lines[-1])


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    teller = ProgressTeller(None)
    teller.begin(0, 1)
    teller.step(1, {"loss": 1.0})
    assert list(tmp_path.iterdir()) == []
