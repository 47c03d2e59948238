from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from rosepo.config import TrainConfig
from rosepo.training.engine import Engine, learning_rate_at, prepare_process
from rosepo.training.rank import fit_in_process
from rosepo.training.sft import sft_task
from rosepo.utils.errors import StageError
from tests.training.ranks import two_ranks
from tests.training.tiny_run import tiny_config


@pytest.fixture(autouse=True)
def process():
    prepare_process()


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))


def test_the_learning_rate_warms_up_and_ends_at_its_minimum():
    train = TrainConfig(learning_rate=1.0, warmup_fraction=0.1, min_learning_rate=0.1)
    rates = [learning_rate_at(step, 100, train) for step in range(100)]
    assert rates[:3] == pytest.approx([0.1, 0.2, 0.3])
    assert rates[10] == 1.0
    assert np.all(np.diff(rates[10:]) < 0)
    assert rates[-1] == pytest.approx(0.1, abs=1e-3)
    assert learning_rate_at(0, 1, TrainConfig(learning_rate=1.0, warmup_fraction=0.0)) == 1.0


def _compiles_nothing(rank: int) -> None:
    import deepspeed.comm

    Engine(model(), TrainConfig(), 1)
    assert deepspeed.comm.comm.cdb.shm_comm_op is None


def test_an_engine_compiles_nothing_in_a_process_group_that_was_there_before():
    two_ranks(_compiles_nothing)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_steps_equal_those_of_plain_torch(stage):
    train = TrainConfig(zero_stage=stage, learning_rate=1e-2, warmup_fraction=0.3, weight_decay=0.1, max_grad_norm=0.05)
    mine, plain = model(), model()
    decayed = [weight for weight in plain.parameters() if weight.dim() > 1]
    biases = [weight for weight in plain.parameters() if weight.dim() == 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": biases, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups)
    engine = Engine(mine, train, steps=5)
    inputs = torch.randn(5, 10, 4, generator=torch.Generator().manual_seed(1))
    for step in range(5):
        parts = inputs[step].split([10] if step == 0 else [3, 7] if step % 2 else [2, 1, 4, 3])
        for number, part in enumerate(parts, start=1):
            engine.accumulate((engine.forward(part) ** 2).sum(), units=10, last=number == len(parts))
        figures = engine.step()
        (plain(inputs[step]) ** 2).mean().backward()
        norm = torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.05)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, 5, train)
        optimizer.step()
        optimizer.zero_grad()
        assert float(figures.grad_norm) == pytest.approx(float(norm), rel=1e-4)
        assert figures.learning_rate == learning_rate_at(step, 5, train)
    found = engine.state_dict()
    engine.close()
    assert found.keys() == plain.state_dict().keys()
    for name, value in plain.state_dict().items():
        assert torch.allclose(found[name], value, atol=1e-5), name


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_first_step_in_bfloat16_is_as_large_as_in_float32(stage):
    # DeepSpeed's own bfloat16 optimizer makes it a quarter smaller at stage 0.
    train = TrainConfig(
        zero_stage=stage, precision="bfloat16", learning_rate=1e-2, warmup_fraction=0.0, weight_decay=0.0
    )
    module = model()
    before = module[0].weight.detach().clone()
    engine = Engine(module, train, steps=4)
    inputs = torch.randn(16, 4, generator=torch.Generator().manual_seed(1))
    engine.accumulate((engine.forward(inputs.bfloat16() if stage else inputs).float() ** 2).sum(), units=16)
    engine.step()
    change = (engine.state_dict()["0.weight"] - before).abs()
    engine.close()
    assert change.median().item() == pytest.approx(1e-2, rel=0.02)


def test_a_step_before_its_last_micro_batch_is_an_error():
    engine = Engine(model(), TrainConfig(zero_stage=0), steps=1)
    for before in range(2):
        if before:
            engine.accumulate(engine.forward(torch.ones(3, 4)).sum(), units=3, last=False)
        with pytest.raises(RuntimeError, match="before its last micro-batch"):
            engine.step()
    engine.close()


def test_divergence_stops_with_the_step_and_remedies(tiny_run, tmp_path):
    config = tiny_config(learning_rate=1e30, warmup_fraction=0.0, weight_decay=0.0)
    with pytest.raises(StageError, match=r"sft diverged: .* at step \d+; lower sft.learning_rate \(1e\+30\)"):
        fit_in_process(sft_task(config, tiny_run), tmp_path)


def test_no_compiler_is_needed():
    script = "import tests.training.test_engine as t; t.prepare_process(); t.test_steps_equal_those_of_plain_torch(2)"
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PATH": "/nonexistent", "PYTHONPATH": str(root), "CC": "", "CXX": ""}
    done = subprocess.run([sys.executable, "-c", script], cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
