"""Training that was killed goes on from its newest checkpoint and ends as one that was never stopped."""

from __future__ import annotations

import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rosepo.config import Config, TrainConfig
from rosepo.pipeline.fingerprints import stage_settings
from rosepo.run.paths import RunPaths
from rosepo.run.stages import find_stage
from rosepo.training.align import align_task
from rosepo.training.checkpoint import saver
from rosepo.training.checkpoint.checkpoint_files import (
    FOLDER,
    Checkpoint,
    CheckpointWriter,
    complete_checkpoints,
    newest_checkpoint,
)
from rosepo.training.checkpoint.pieces import Place
from rosepo.training.checkpoint.saver import agreed_start, origin_of
from rosepo.training.engine import prepare_process
from rosepo.training.feed.feed import micro_batches
from rosepo.training.feed.plan import Arrays
from rosepo.training.metric_log import cut_log
from rosepo.training.rank import fit_in_process, train_rank
from rosepo.training.sft import SftTask, sft_task
from rosepo.training.validation import check_best
from rosepo.utils.errors import StageError, UserError
from tests.training.kills import config_of, resumed, train_rank_of
from tests.training.ranks import forked_ranks
from tests.training.tiny_run import assert_same_training, lines, tiny_config, weights

KILLED = 26
"""Micro-batches of a rank before it is killed: thirteen steps, in the middle of the second epoch."""
KEYS = ("loss", "token_loss", "epoch", "learning_rate", "grad_norm", "validation_loss", "pad_share", "hr@10")


def _slow(kind: str) -> Any:
    """A case that CI leaves to `make test-slow`: of stages and kinds the others have one each."""
    return pytest.param(kind, marks=pytest.mark.slow)


@pytest.fixture(scope="module", params=[_slow("full-2"), "full-3", "lora-2", _slow("lora-3")])
def trained(
    request: pytest.FixtureRequest, tiny_run: RunPaths, base_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path, Path]:
    """The folders of a training by two ranks that was never stopped, of the same with one rank killed in the middle,
    and of the same gone on with."""
    kind, _, stage = request.param.partition("-")
    config = config_of(int(stage), base_model if kind == "lora" else None)
    whole, killed, gone_on = (tmp_path_factory.mktemp(request.param) / name for name in ("whole", "killed", "gone-on"))
    run = str(tiny_run.root)
    assert forked_ranks(2, train_rank_of, run, config, str(whole), None) == [0, 0]
    assert forked_ranks(2, train_rank_of, run, config, str(killed), KILLED)[1] == -signal.SIGKILL
    shutil.copytree(killed, gone_on)
    assert forked_ranks(2, train_rank_of, run, config, str(gone_on), None) == [0, 0]
    return whole, killed, gone_on


def test_a_killed_training_ends_as_one_that_was_never_stopped(trained: tuple[Path, Path, Path]) -> None:
    whole, killed, gone_on = trained
    assert newest_checkpoint(killed).step in (9, 12)
    assert not (killed / "rosepo.json").exists()
    assert_same_training(whole, gone_on, 1e-6)
    first, second = lines(whole), lines(gone_on)
    assert [line["step"] for line in second] == [0, 2, 4, 5, 6, 8, 10, 12, 14, 15, 16]
    for one, other in zip(first, second, strict=True):
        assert {key: one[key] for key in KEYS if key in one} == pytest.approx(
            {key: other[key] for key in KEYS if key in other}, abs=2e-5
        )


class Stop(Exception):
    """Ends a training in the middle, in this process."""


def stopped(stream: Iterator[Arrays], at: int) -> Iterator[Arrays]:
    for number, arrays in enumerate(stream):
        if number == at:
            raise Stop
        yield arrays


def alone(task: Any, out: Path, at: int | None = None, start: Checkpoint | None = None) -> dict[str, Any]:
    """A training by this process, which leaves its checkpoints behind; `at`: stopped before this micro-batch."""
    prepare_process()
    step = 0 if start is None else start.step
    stream = micro_batches(task.plan, 0, 1, range(step, task.plan.schedule.steps))
    try:
        return train_rank(task, stream if at is None else stopped(stream, at), out, start=start, resumable=True)
    except Stop:
        return {}


def test_the_number_of_workers_and_the_zero_stage_may_change(tiny_run: RunPaths, tmp_path: Path) -> None:
    # Without dropout: its masks are each rank's own.
    plain = {"scratch": {**config_of(1).model.scratch_config.model_dump(), "dropout": 0.0}, "max_length": 128}
    settings = {"model": plain, "epochs": 2, "checkpoint_every": 3, "log_every": 1}
    one = tiny_config(zero_stage=1, micro_batch_size=2, **settings)
    two = tiny_config(zero_stage=3, micro_batch_size=1, workers=2, **settings)
    bounded = {"micro_batch_size": 4, "micro_batch_tokens": 48}
    three = tiny_config(zero_stage=3, activation_checkpointing=True, **bounded, **settings)
    task = sft_task(one, tiny_run)
    alone(task, tmp_path / "whole")
    alone(task, tmp_path / "stopped", at=30)
    shutil.copytree(tmp_path / "stopped", tmp_path / "alone")
    assert forked_ranks(2, go_on, str(tiny_run.root), two, str(tmp_path / "stopped"), 20) == [1, 1]
    assert newest_checkpoint(tmp_path / "stopped").facts["world"] == 2
    last = sft_task(three, tiny_run)
    start = agreed_start(last, tmp_path / "stopped")
    assert start is not None
    alone(last, tmp_path / "stopped", start=start)
    assert_same_training(tmp_path / "whole", tmp_path / "stopped", 1e-5)


OTHERS = {
    "workers": 3, "cpus_per_worker": 2.0, "gpu": "no", "zero_stage": 2, "precision": "bfloat16",
    "activation_checkpointing": True, "attention": "eager", "offload": "optimizer", "epochs": 7.0, "batch_size": 4,
    "micro_batch_size": 4, "micro_batch_tokens": 64, "pack_tokens": 64, "learning_rate": 1e-6, "warmup_fraction": 0.5,
    "min_learning_rate": 1e-7,
    "weight_decay": 0.3, "max_grad_norm": 0.1, "ema": 0.9, "log_every": 3, "validate_every": 3, "validation_users": 5,
    "best_metric": "validation_loss", "patience": 3, "min_gain": 0.1, "max_seconds": 60.0, "checkpoint_every": 3,
    "keep_checkpoints": 3, "retries": 0,
}  # fmt: skip
"""A value that `tiny_config` has not, of every setting of a training."""
RESOURCES = {
    "workers", "cpus_per_worker", "gpu", "activation_checkpointing", "attention", "offload", "micro_batch_size",
    "micro_batch_tokens", "log_every", "checkpoint_every", "keep_checkpoints", "retries",
}  # fmt: skip


@pytest.mark.parametrize("key", TrainConfig.model_fields)
def test_checkpoints_are_gone_on_from_where_the_stage_is_the_same(key: str) -> None:
    config = tiny_config()
    other = config.model_copy(update={"sft": config.sft.model_copy(update={key: OTHERS[key]})})
    sft = find_stage("sft")
    assert getattr(config.sft, key) != OTHERS[key]
    assert (stage_settings(config, sft) == stage_settings(other, sft)) == (key in RESOURCES)
    assert (origin_of(config.sft) == origin_of(other.sft)) == (key in RESOURCES)


def go_on(rank: int, run: str, config: Config, out: str, at: int) -> None:
    """One of two ranks that go on from whatever checkpoint is there, and stop in the middle."""
    prepare_process()
    task = sft_task(config, RunPaths(Path(run)))
    start = newest_checkpoint(Path(out))
    stream = micro_batches(task.plan, rank, 2, range(start.step, task.plan.schedule.steps))
    train_rank(task, stopped(stream, at), Path(out), start=start, resumable=True)


def test_as_many_checkpoints_are_kept_as_asked_for_and_the_best(tiny_run: RunPaths, tmp_path: Path) -> None:
    config = config_of(0, best_metric="validation_loss", validate_every=1, keep_checkpoints=3, learning_rate=0.2)
    figures = alone(sft_task(config, tiny_run), tmp_path)
    seen = {int(line["step"]): line["validation_loss"] for line in lines(tmp_path) if "validation_loss" in line}
    best = min(seen, key=lambda step: (seen[step], step))
    assert figures["best_step"] == best
    assert figures["validation_loss"] == pytest.approx(seen[best], rel=1e-5)
    kept = complete_checkpoints(tmp_path)
    assert len([found for found in kept if found.step != best]) + (best in [found.step for found in kept[-3:]]) >= 3
    assert len(kept) <= 4
    assert figures["steps"] == 16
    if best < 16:
        found = next(found for found in kept if found.step == best).tensors(0, ("weight",))
        for name, value in weights(tmp_path).items():
            assert np.array_equal(found[f"weight/model.{name}"], value.numpy().reshape(-1))


def test_training_stops_early_without_a_better_look(tiny_run: RunPaths, tmp_path: Path) -> None:
    settings = {"best_metric": "ndcg@10", "validation_users": 12, "validate_every": 1, "patience": 2}
    figures = fit_in_process(sft_task(config_of(1, learning_rate=1e-6, **settings), tiny_run), tmp_path)
    assert figures["stopped_early"]
    assert figures["steps"] == figures["best_step"] + 2
    assert [line["step"] for line in lines(tmp_path)][-1] == figures["steps"]
    assert all(0.0 <= line["ndcg@10"] <= line["hr@10"] <= 1.0 for line in lines(tmp_path)[1:])
    assert not (tmp_path / FOLDER).exists()


def test_the_thresholds_of_spa_go_on_where_they_were(run: RunPaths, tmp_path: Path) -> None:
    settings = {"epsilon": "spa", "learning_rate": 3e-3, "checkpoint_every": 1, "log_every": 1, "epochs": 2}
    task = align_task(tiny_config("align", **settings), run)
    alone(task, tmp_path / "whole")
    alone(task, tmp_path / "stopped", at=5)
    alone(task, tmp_path / "stopped", start=agreed_start(task, tmp_path / "stopped"))
    assert_same_training(tmp_path / "whole", tmp_path / "stopped", 1e-6)
    whole, gone_on = ([line.get("spa_threshold") for line in lines(tmp_path / name)] for name in ("whole", "stopped"))
    assert whole == gone_on
    assert len(whole) == 9


def test_align_looks_at_held_out_groups(run: RunPaths, tmp_path: Path) -> None:
    inputs = RunPaths(tmp_path / "run")
    shutil.copytree(run.root, inputs.root)
    path = inputs.groups / "part-00000.parquet"
    shutil.copyfile(path, inputs.groups / "_validation.parquet")
    task = align_task(tiny_config("align", epsilon="zero", validate_every=2, log_every=1, epochs=2), inputs)
    assert task.plan.n_rows == 32
    fit_in_process(task, tmp_path)
    looks = [line for line in lines(tmp_path) if "validation_loss" in line]
    assert [line["step"] for line in looks] == [2, 4, 6, 8]
    # The same groups, held out: the last look is at what training has reached.
    assert looks[-1]["validation_margin"] > looks[0]["validation_margin"] > 0
    assert looks[-1]["validation_loss"] < looks[0]["validation_loss"] < np.log(2)
    assert 0.5 <= looks[-1]["validation_accuracy"] <= 1.0


def test_a_best_model_by_a_loss_without_held_out_groups_is_refused(run: RunPaths) -> None:
    with pytest.raises(UserError, match=r"align.best_metric=validation_loss has nothing .*_validation.parquet is not"):
        align_task(tiny_config("align", best_metric="validation_loss"), run)


@pytest.mark.parametrize("searched", [0, 4])
def test_looks_that_have_nothing_to_look_at_are_refused(searched: int) -> None:
    train = tiny_config("align", validate_every=3, validation_users=searched).align
    check_best(train, "align", True, "make some")
    check_best(tiny_config("align").align, "align", False, "make some")
    if searched:
        check_best(train, "align", False, "make some")
        return
    with pytest.raises(
        UserError, match=r"align.validate_every=3 has nothing to look at: make some, or set align.valid"
    ):
        check_best(train, "align", False, "make some")


class Unshared(SftTask):
    """Trains a model of a family that is not known to share prefixes."""

    def build(self) -> Any:
        built: Any = super().build()
        built.model.config.model_type = "novel"
        return built


def test_rows_that_cannot_be_shared_are_told_of_once(
    tiny_run: RunPaths, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = sft_task(config_of(1, epochs=0.4, validate_every=1), tiny_run)
    assert "plain_rows" not in fit_in_process(task, tmp_path / "shared")
    assert "one row a completion" not in capsys.readouterr().err
    other = Unshared(**vars(task))
    figures = fit_in_process(other, tmp_path / "plain")
    assert figures["plain_rows"].startswith("model type novel is not one of ")
    told = capsys.readouterr().err
    assert told.count("sft: shared-prefix rows were off, one row a completion instead: model type novel") == 1
    assert told.count("one row a completion") == 1


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"patience": 2}, "sft.patience=2 waits for a better sft.best_metric, which is unset"),
        ({"best_metric": "hr@10"}, "sft.best_metric=hr@10 is measured on sft.validation_users, of which there are 0"),
        ({"checkpoint_every": 0, "keep_checkpoints": 3}, "sft.keep_checkpoints is not used beside"),
    ],
)
def test_settings_without_a_use_are_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=re.escape(sentence)):
        tiny_config(**settings)


def test_a_checkpoint_of_other_settings_is_not_gone_on_from(tiny_run: RunPaths, tmp_path: Path) -> None:
    alone(sft_task(config_of(1), tiny_run), tmp_path, at=40)
    assert newest_checkpoint(tmp_path) is not None
    assert agreed_start(sft_task(config_of(1, learning_rate=1e-3), tiny_run), tmp_path) is None
    assert newest_checkpoint(tmp_path) is None


def test_a_folder_that_cannot_be_written_to_ends_training_with_a_sentence(tiny_run: RunPaths, tmp_path: Path) -> None:
    (tmp_path / FOLDER).write_text("no folder")
    with pytest.raises(StageError, match=r"^sft: a checkpoint cannot be written to .*_checkpoints \(.*\): make room"):
        alone(sft_task(config_of(1), tiny_run), tmp_path)


def test_a_half_written_line_of_metrics_is_cut_away(tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    log.write_text('{"step": 0}\n{"step": 2}\n{"step": 4}\n{"step": 6, "lo')
    cut_log(log, 4)
    assert log.read_text() == '{"step": 0}\n{"step": 2}\n{"step": 4}\n'
    cut_log(log, 3)
    assert log.read_text() == '{"step": 0}\n{"step": 2}\n'
    cut_log(log, 0)
    assert log.read_text() == ""


def test_two_ranks_of_any_zero_stage_search_the_catalogue_as_one_does(tiny_run: RunPaths, tmp_path: Path) -> None:
    plain = {"scratch": {**config_of(1).model.scratch_config.model_dump(), "dropout": 0.0}, "max_length": 128}
    settings = {"model": plain, "validation_users": 9, "micro_batch_size": 4, "learning_rate": 2e-2}
    fit_in_process(sft_task(tiny_config(zero_stage=1, **settings), tiny_run), tmp_path / "alone")
    expected = [line["ndcg@10"] for line in lines(tmp_path / "alone") if "ndcg@10" in line]
    assert len(expected) == 4
    assert max(expected) > 0
    configs = {
        f"{precision}-{stage}": tiny_config(zero_stage=stage, precision=precision, **settings)
        for stage, precision in ((2, "float32"), (3, "float32"), (3, "bfloat16"))
    }
    assert forked_ranks(2, train_each, str(tiny_run.root), configs, str(tmp_path)) == [0, 0]
    for name in configs:
        found = [line["ndcg@10"] for line in lines(tmp_path / name) if "ndcg@10" in line]
        assert found == pytest.approx(expected, abs=0.3 if name.startswith("bfloat16") else 1e-6), name


def train_each(rank: int, run: str, configs: dict[str, Config], out: str) -> None:
    """One rank of several trainings, one after another."""
    for name, config in configs.items():
        resumed(sft_task(config, RunPaths(Path(run))), Path(out) / name)


def test_a_checkpoint_that_a_shared_disk_hides_is_waited_for_and_then_told(tmp_path, monkeypatch):
    writer = CheckpointWriter(tmp_path, "sft", 0, 1, 1)
    writer.write(3, {"weight/a": np.ones(2, np.float32)}, {"weight/a": Place(0, 2)}, {"origin": "x"})
    writer.wait()
    folder = tmp_path / FOLDER
    folder.rename(tmp_path / "hidden")
    looks = []

    def shown_later(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 3:
            (tmp_path / "hidden").rename(folder)

    monkeypatch.setattr(saver.time, "sleep", shown_later)
    assert saver._at(tmp_path, 3).step == 3
    assert len(looks) == 3
    monkeypatch.setattr(saver, "LAG", 0.0)
    with pytest.raises(StageError, match=r"step 9 is not to be seen whole in .*_checkpoints.* share --out"):
        saver._at(tmp_path, 9)
