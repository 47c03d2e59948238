"""Training on Ray Train: two workers, data through Ray Data."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from rosepo.training.align import align, align_in_process
from rosepo.training.checkpoint.checkpoint_files import FOLDER, newest_checkpoint
from rosepo.training.feed.feed import LaggingView
from rosepo.training.sft import SftTask, sft_task
from rosepo.training.trainer import fit, lost_worker, told_by_worker
from rosepo.utils.errors import StageError, UserError
from rosepo.utils.files import write_json
from tests.training.tiny_run import assert_same_training, lines, tiny_config


def test_two_workers_fed_by_ray_data_train_as_one_process(ray_cluster, tiny_run, alone, tmp_path):
    # So few tokens that ranks have more micro-batches in some steps than in others, and not equally many.
    config = tiny_config(workers=2, micro_batch_size=2, micro_batch_tokens=64, zero_stage=2, epochs=2)
    seen = []

    def last():
        # What comes after training may still fail: its checkpoints are there until then, and the model is too.
        seen.extend([newest_checkpoint(tmp_path).step, (tmp_path / "rosepo.json").exists()])

    figures = fit(sft_task(config, tiny_run), tmp_path, last=last)
    assert seen == [10, True]
    assert not (tmp_path / FOLDER).exists()
    assert_same_training(alone, tmp_path, 1e-5)
    assert (figures["steps"], figures["rows"]) == (16, 120)
    assert figures["validation_loss"] < 20
    assert not (tmp_path / "_ray_train").exists()
    assert list((tmp_path / "tensorboard").glob("events*"))


@pytest.mark.slow
def test_a_shuffled_epsilon_reaches_two_workers_through_ray_data(ray_cluster, run, tmp_path):
    settings = {"epsilon": "shuffled", "log_every": 1, "learning_rate": 3e-3, "zero_stage": 0}
    align_in_process(tiny_config("align", **settings), run, tmp_path / "alone")
    figures = align(tiny_config("align", workers=2, micro_batch_size=2, **settings), run, tmp_path / "fed")
    assert_same_training(tmp_path / "alone", tmp_path / "fed", 1e-5)
    used = [[line["epsilon"] for line in lines(tmp_path / out) if "epsilon" in line] for out in ("alone", "fed")]
    assert used[0] == pytest.approx(used[1], abs=1e-5)
    assert figures["epsilon_kind"] == "shuffled"


@dataclass
class Broken(SftTask):
    """Fails on every worker, which each leave a file."""

    tries: Path = Path()

    def build(self) -> nn.Module:
        (self.tries / str(os.getpid())).touch()
        raise ValueError("the weights are gone")


def test_an_error_of_the_training_is_told_in_one_sentence_and_not_tried_again(ray_cluster, tiny_run, tmp_path):
    task: Any = sft_task(tiny_config(workers=2, retries=2), tiny_run)
    tries, out = tmp_path / "tries", tmp_path / "out"
    tries.mkdir()
    broken = Broken(**vars(task), tries=tries)
    with pytest.raises(StageError, match=r"^sft: worker [01] of 2 failed with ValueError: the weights are gone$"):
        fit(broken, out)
    assert len(list(tries.iterdir())) <= 2


def test_that_checkpoints_of_another_version_are_not_gone_on_from_is_told(ray_cluster, tiny_run, tmp_path, capsys):
    task: Any = sft_task(tiny_config(workers=2), tiny_run)
    (tmp_path / FOLDER / "step-000000003").mkdir(parents=True)
    write_json(tmp_path / FOLDER / "step-000000003" / "checkpoint.json", {"format": 1, "step": 3, "world": 2})
    with pytest.raises(StageError, match="the weights are gone"):
        fit(Broken(**vars(task), tries=tmp_path), tmp_path)
    told = f"sft begins anew: another version of rosepo wrote the checkpoints in {tmp_path / FOLDER}"
    assert capsys.readouterr().err.count(told) == 1
    assert not list((tmp_path / FOLDER).iterdir())


def test_what_a_worker_tells_the_user_is_found_whatever_else_failed():
    failures: Any = {0: RuntimeError("Connection closed by peer"), 1: UserError("the scores hold no item 7")}
    assert told_by_worker(SimpleNamespace(worker_failures=failures)) is failures[1]
    del failures[1]
    assert told_by_worker(SimpleNamespace(worker_failures=failures)) is None


@pytest.mark.parametrize(
    ("message", "again"),
    [
        ("CUDA error: uncorrectable ECC error encountered", True),
        ("CUDA error: unspecified launch failure", True),
        ("CUDA error: an illegal memory access was encountered", True),
        ("NVRM: Xid (PCI:0000:3b:00): 79, GPU has fallen off the bus", True),
        ("NCCL error: unhandled system error", True),
        ("CUDA error: device-side assert triggered", False),
        ("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)", False),
    ],
)
def test_a_broken_gpu_is_tried_again_and_an_error_of_the_program_is_not(message, again):
    assert lost_worker(SimpleNamespace(worker_failures={1: RuntimeError(message)})) == again


def test_a_view_of_the_disk_that_is_behind_is_tried_again():
    assert lost_worker(SimpleNamespace(worker_failures={0: LaggingView("the data begin with step 4")}))
