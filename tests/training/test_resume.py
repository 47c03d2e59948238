"""Training that was killed goes on from its newest checkpoint and ends as one that was never stopped."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch.distributed as dist
import torch.multiprocessing as mp

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
from tests.training.ranks import two_ranks

KILLED = 13
"""Micro-batches of a rank before it is killed, in the middle of the second epoch."""
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


def train_each(rank: int, run: str, configs: dict[str, Config], out: str, killed: int | None) -> None:
    """All trainings one after another; where `killed`, the last rank is killed in the middle of the only one."""
    for name, config in configs.items():
        task = sft_task(config, Outputs(Path(run)))
        resumed(task, Path(out) / name, killed if rank == 1 else None)


@pytest.fixture(scope="module")
def base_model(tiny_run: Outputs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("base")
    fit_in_process(sft_task(config_of(0, epochs=0.2), tiny_run), out)
    return out


@pytest.fixture(scope="module")
def configs(base_model: Path) -> dict[str, Config]:
    return {
        "full-2": config_of(2),
        "full-3": config_of(3),
        "lora-2": config_of(2, base_model),
        "lora-3": config_of(3, base_model),
    }


@pytest.fixture(scope="module")
def undisturbed(tiny_run: Outputs, configs: dict[str, Config], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed")
    two_ranks(train_each, str(tiny_run.root), configs, str(out), None)
    return out


@pytest.fixture(scope="module")
def killed(tiny_run: Outputs, configs: dict[str, Config], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every training with one rank killed in the middle."""
    out = tmp_path_factory.mktemp("killed")
    for name, config in configs.items():
        with pytest.raises(mp.ProcessExitedException, match="SIGKILL"):
            two_ranks(train_each, str(tiny_run.root), {name: config}, str(out), KILLED * 2)
        assert newest_checkpoint(out / name).step in (9, 12)
    return out


@pytest.fixture(scope="module")
def gone_on(
    tiny_run: Outputs, configs: dict[str, Config], killed: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("gone-on") / "all"
    shutil.copytree(killed, out)
    two_ranks(train_each, str(tiny_run.root), configs, str(out), None)
    return out


@pytest.mark.parametrize("name", ["full-2", "full-3", "lora-2", "lora-3"])
def test_a_killed_training_ends_as_one_that_was_never_stopped(undisturbed: Path, gone_on: Path, name: str) -> None:
    assert_same_training(undisturbed / name, gone_on / name, 1e-6)
    first, second = lines(undisturbed / name), lines(gone_on / name)
    assert [line["step"] for line in second] == [0, 2, 4, 5, 6, 8, 10, 12, 14, 15, 16]
    for one, other in zip(first, second, strict=True):
        assert {key: one[key] for key in KEYS if key in one} == pytest.approx(
            {key: other[key] for key in KEYS if key in other}, abs=2e-5
        )
