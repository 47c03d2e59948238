"""Training on Ray Train: two workers, data through Ray Data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from torch import nn

from rosepo.errors import StageError
from rosepo.training.sft import SftTask, sft, sft_task
from rosepo.training.trainer import fit
from tests.training.conftest import assert_same_training, tiny_config


def test_two_workers_fed_by_ray_data_train_as_one_process(ray_cluster, tiny_run, alone, tmp_path):
    config = tiny_config(workers=2, micro_batch_size=2, zero_stage=2, epochs=2)
    figures = sft(config, tiny_run, tmp_path)
    assert_same_training(alone, tmp_path, 1e-5)
    assert (figures["steps"], figures["rows"]) == (16, 120)
    assert figures["validation_loss"] < 20
    assert not (tmp_path / "_ray_train").exists()
    assert list((tmp_path / "tensorboard").glob("events*"))


@dataclass
class Broken(SftTask):
    """Fails on every worker."""

    def build(self) -> nn.Module:
        raise ValueError("the weights are gone")


def test_a_failing_worker_is_told_in_one_sentence(ray_cluster, tiny_run, tmp_path):
    task: Any = sft_task(tiny_config(workers=2), tiny_run)
    broken = Broken(task.config, task.catalogue, task.plan, task.validation)
    with pytest.raises(StageError, match=r"^sft: worker [01] of 2 failed with ValueError: the weights are gone$"):
        fit(broken, tmp_path)
