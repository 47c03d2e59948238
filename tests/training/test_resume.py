"""Training that was killed goes on from its newest checkpoint and ends as one that was never stopped."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch.distributed as dist

from rosepo.artifacts import Outputs
from rosepo.config import Config
from rosepo.errors import StageError
from rosepo.training.checkpoints import FOLDER, complete_checkpoints, newest_checkpoint
from rosepo.training.engine import prepare_process
from rosepo.training.feed import Arrays, micro_batches
from rosepo.training.loop import fit_in_process, train_rank
from rosepo.training.saving import agreed_start
from rosepo.training.sft import SftTask, sft_task
from tests.training.conftest import assert_same_training, lines, tiny_config, weights
from tests.training.ranks import forked_ranks

KILLED = 26
"""Micro-batches of a rank before it is killed: thirteen steps, in the middle of the second epoch."""
KEYS = ("loss", "token_loss", "epoch", "learning_rate", "grad_norm", "validation_loss", "pad_share", "hr@10")


def config_of(zero_stage: int, lora: Path | None = None, **train: object) -> Config:
    scratch = {"hidden_size": 16, "layers": 1, "heads": 2, "intermediate_size": 32, "vocab_size": 300}
    model = {"scratch": {**scratch, "dropout": 0.1}, "max_length": 128}
    if lora is not None:
        model = {"path": str(lora), "max_length": 128, "lora": {"rank": 2, "dropout": 0.1}}
    settings = {"micro_batch_size": 2, "epochs": 2, "checkpoint_every": 3, "log_every": 2, "validate_every": 5}
    return tiny_config(model=model, zero_stage=zero_stage, **settings | train)


def resumed(task: SftTask, out: Path, killed: int | None = None) -> None:
    """One rank's training from the newest checkpoint on; `killed`: the process kills itself before this micro-batch."""
    prepare_process()
    start = agreed_start(task, out)
    step = 0 if start is None else start.step
    stream = micro_batches(task.plan, dist.get_rank(), dist.get_world_size(), range(step, task.plan.schedule.steps))
    train_rank(task, deadly(stream, killed), out, start=start, resumable=True)


def deadly(stream: Iterator[Arrays], killed: int | None) -> Iterator[Arrays]:
    for number, arrays in enumerate(stream):
        if number == killed:
            os.kill(os.getpid(), signal.SIGKILL)
        yield arrays


def train_rank_of(rank: int, run: str, config: Config, out: str, killed: int | None) -> None:
    """One rank; the last one is killed where that is asked for."""
    resumed(sft_task(config, Outputs(Path(run))), Path(out), killed if rank == 1 else None)


@pytest.fixture(scope="module")
def base_model(tiny_run: Outputs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("base")
    fit_in_process(sft_task(config_of(0, epochs=0.2), tiny_run), out)
    return out


@pytest.fixture(scope="module", params=["full-2", "full-3", "lora-2", "lora-3"])
def trained(
    request: pytest.FixtureRequest, tiny_run: Outputs, base_model: Path, tmp_path_factory: pytest.TempPathFactory
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
