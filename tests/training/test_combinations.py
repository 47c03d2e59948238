"""Every combination of engine settings trains as plain data parallelism in float32 does, or is refused."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import nn

from rosepo.config import TrainConfig, parse_config
from rosepo.errors import UserError
from rosepo.training.batch import collate
from rosepo.training.engine import Engine, prepare_process
from rosepo.training.logps import LogpsModel
from tests.helpers import tiny_model
from tests.training.ranks import two_ranks
from tests.training.test_logps import make_groups, rows_of

STEPS, MICRO = 3, 2
OFFLOADS = ("none", "optimizer", "parameters")
AXES: dict[str, tuple[Any, ...]] = {
    "zero_stage": (0, 1, 2, 3),
    "precision": ("float32", "bfloat16"),
    "offload": OFFLOADS,
    "activation_checkpointing": (False, True),
    "attention": ("sdpa", "eager"),
    "lora": (False, True),
}
COMBINATIONS = [dict(zip(AXES, values, strict=True)) for values in itertools.product(*AXES.values())]
REFUSED = {(stage, "parameters") for stage in (0, 1, 2)} | {(0, "optimizer")}
TAKEN = [one for one in COMBINATIONS if (one["zero_stage"], one["offload"]) not in REFUSED]


def name_of(combination: dict[str, Any]) -> str:
    return "-".join(str(value) for value in combination.values())


def settings(zero_stage: int = 0, **changed: Any) -> TrainConfig:
    changed.pop("lora", None)
    # Every step is clipped, and no weight moves by so much that rounding decides.
    fixed = {"max_grad_norm": 0.5, "learning_rate": 1e-3, "warmup_fraction": 0.0, "micro_batch_size": 2}
    return TrainConfig(zero_stage=zero_stage, batch_size=8, **fixed, **changed)


def module_of(train: TrainConfig, lora: bool) -> nn.Module:
    model: Any = tiny_model(initializer_range=0.1)
    if lora:
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(1)
        # Random B matrices: were they zero, the first step would leave the A matrices alone.
        model = get_peft_model(
            model, LoraConfig(r=2, lora_dropout=0.0, target_modules="all-linear", init_lora_weights=False)
        )
    return LogpsModel(model, attention=train.attention, activation_checkpointing=train.activation_checkpointing).train()


def train_steps(train: TrainConfig, lora: bool, rank: int, world: int, micro: int) -> dict[str, Any] | None:
    """A few steps on eight groups each, dealt out over ranks and micro-batches; what came of them, on rank 0."""
    engine = Engine(module_of(train, lora), train, STEPS, micro)
    losses, norms = [], []
    for step in range(STEPS):
        groups = [group for seed in range(3) for group in make_groups(2, 10 * step + seed)][:8]
        total = torch.zeros((), dtype=torch.float64)
        for part in range(micro):
            logps, _ = engine.forward(collate(rows_of(groups[rank * micro + part :: world * micro])))
            loss = -logps.sum()
            engine.accumulate(loss, units=8)
            total += loss.detach()
        dist.all_reduce(total)
        losses.append(float(total) / 8)
        norms.append(engine.step().grad_norm)
    weights = engine.state_dict()
    engine.close()
    return None if weights is None else {"losses": losses, "norms": norms, "weights": weights}


def train_all(rank: int, out: str) -> None:
    prepare_process()
    for combination in TAKEN:
        result = train_steps(settings(**combination), combination["lora"], rank, 2, MICRO)
        if result is not None:
            save_file(
                {name: value.contiguous().clone() for name, value in result["weights"].items()},
                Path(out) / f"{name_of(combination)}.safetensors",
                {"figures": json.dumps({"losses": result["losses"], "norms": result["norms"]})},
            )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("combinations")
    two_ranks(train_all, str(out))
    return out


@pytest.fixture(scope="module")
def alone() -> dict[bool, dict[str, Any]]:
    """ZeRO-0 in float32 by one rank, all eight groups at once: full training, and an adapter's."""
    prepare_process()
    found = {lora: train_steps(settings(), lora, 0, 1, 1) for lora in (False, True)}
    return {lora: result for lora, result in found.items() if result is not None}


def test_the_alone(alone):
    assert len(alone)
