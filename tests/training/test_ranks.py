"""What training must not depend on: micro-batches, accumulation, number of workers, ZeRO stage."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from rosepo.config import Config
from rosepo.run.paths import RunPaths
from rosepo.training.engine import prepare_process
from rosepo.training.feed.feed import micro_batches
from rosepo.training.rank import fit_in_process, train_rank
from rosepo.training.sft import sft_task
from tests.training.ranks import two_ranks
from tests.training.tiny_run import ITEMS, assert_same_training, losses, tiny_config, weights

STAGES = (0, 1, 2, 3)


def train_all(rank: int, run: str, configs: dict[str, Config], out: str) -> None:
    """One training after another, in the process group that is there."""
    prepare_process()
    for name, config in configs.items():
        task = sft_task(config, RunPaths(Path(run)))
        train_rank(task, micro_batches(task.plan, rank, 2), Path(out) / name)


@pytest.fixture(scope="module")
def together(tiny_run, tmp_path_factory, base_model) -> Path:
    """Trained by two ranks: every stage in both precisions, and an adapter under ZeRO-3."""
    configs: dict[str, Any] = {
        f"{precision}-{stage}": tiny_config(zero_stage=stage, precision=precision, micro_batch_size=2, epochs=2)
        for precision in ("float32", "bfloat16")
        for stage in STAGES
    }
    for stage in STAGES:
        lora = {"path": str(base_model), "max_length": 128, "lora": {"rank": 2, "dropout": 0.0}}
        configs[f"lora-{stage}"] = tiny_config(model=lora, zero_stage=stage, micro_batch_size=2, epochs=2)
    out = tmp_path_factory.mktemp("together")
    two_ranks(train_all, str(tiny_run.root), configs, str(out))
    return out


@pytest.fixture(scope="module")
def base_model(tiny_run, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("base")
    fit_in_process(sft_task(tiny_config(epochs=0.2), tiny_run), out)
    return out


def test_accumulation_does_not_change_training(tiny_run, alone, tmp_path):
    fit_in_process(sft_task(tiny_config(zero_stage=1, micro_batch_size=3, epochs=2), tiny_run), tmp_path)
    assert_same_training(alone, tmp_path, 1e-5)


def test_packing_does_not_change_training(tiny_run, alone, tmp_path):
    packed = tiny_config(zero_stage=0, pack_tokens=64, epochs=2)
    fit_in_process(sft_task(packed, tiny_run), tmp_path)
    assert_same_training(alone, tmp_path, 1e-5)


@pytest.mark.parametrize("stage", STAGES)
def test_two_ranks_train_as_one_at_every_zero_stage(alone, together, stage):
    assert_same_training(alone, together / f"float32-{stage}", 1e-5)


@pytest.mark.parametrize("stage", STAGES)
def test_bfloat16_stays_near_float32_at_every_zero_stage(alone, together, stage):
    assert losses(together / f"bfloat16-{stage}") == pytest.approx(losses(alone), rel=0.02)


@pytest.mark.parametrize("stage", STAGES)
def test_adapters_come_out_whole_at_every_zero_stage(together, stage):
    first = weights(together / "lora-0")
    found = weights(together / f"lora-{stage}")
    assert found.keys() == first.keys()
    for name, value in found.items():
        assert value.numel() > 0
        assert torch.allclose(value, first[name], rtol=0, atol=1e-5), name
    assert any(value.abs().sum() > 0 for name, value in found.items() if "lora_B" in name)


def test_training_learns_which_item_follows(tiny_run, tmp_path):
    fit_in_process(sft_task(tiny_config(epochs=30, learning_rate=2e-2), tiny_run), tmp_path)
    # Who knows only which titles exist pays log(items) nats a title; the next item is always the neighbour.
    assert losses(tmp_path)[-1] < 0.5 * math.log(ITEMS)
