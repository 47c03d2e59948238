"""Every combination of engine settings trains as plain data parallelism in float32 does, or is refused."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from rosepo.config import TrainConfig, parse_config
from rosepo.lm.rows.batch import collate
from rosepo.lm.rows.logps import LogpsModel
from rosepo.training.engine import Engine, prepare_process
from rosepo.utils.errors import UserError
from tests.helpers import tiny_model
from tests.lm.rows.test_logps import make_groups, rows_of
from tests.training.ranks import two_ranks

STEPS, MICRO = 2, 2
SMALL = {"num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2,
         "num_key_value_heads": 1, "vocab_size": 48, "initializer_range": 0.1}  # fmt: skip
OFFLOADS = ("none", "optimizer", "parameters")
AXES: dict[str, tuple[Any, ...]] = {
    "zero_stage": (0, 1, 2, 3),
    "precision": ("float32", "bfloat16"),
    "offload": OFFLOADS,
    "activation_checkpointing": (False, True),
    "lora": (False, True),
}
COMBINATIONS = [
    # Attention is inside the module, where no setting of the engine reaches: it takes turns.
    {**dict(zip(AXES, values, strict=True)), "attention": ("sdpa", "eager")[sum(map(bool, values[2:])) % 2]}
    for values in itertools.product(*AXES.values())
]
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
    model: Any = tiny_model(**SMALL)
    if lora:
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(1)
        # Random B matrices: were they zero, the first step would leave the A matrices alone.
        model = get_peft_model(
            model, LoraConfig(r=2, lora_dropout=0.0, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
        )
    return LogpsModel(model, attention=train.attention, activation_checkpointing=train.activation_checkpointing).train()


def train_steps(train: TrainConfig, lora: bool, rank: int, world: int, micro: int) -> dict[str, Any] | None:
    """A few steps on eight groups each, dealt out over ranks and micro-batches; what came of them, on rank 0."""
    engine = Engine(module_of(train, lora), train, STEPS)
    losses, norms = [], []
    for step in range(STEPS):
        groups = [group for seed in range(3) for group in make_groups(2, 10 * step + seed, vocabulary=48)][:8]
        total = torch.zeros((), dtype=torch.float64)
        for part in range(micro):
            logps, _ = engine.forward(collate(rows_of(groups[rank * micro + part :: world * micro])))
            loss = -logps.sum()
            engine.accumulate(loss, units=8, last=part == micro - 1)
            total += loss.detach()
        dist.all_reduce(total)
        losses.append(float(total) / 8)
        norms.append(float(engine.step().grad_norm))
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


def outcome(folder: Path, combination: dict[str, Any]) -> dict[str, Any]:
    path = folder / f"{name_of(combination)}.safetensors"
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["figures"]) | {"weights": load_file(path)}


def test_settings_are_refused_where_and_only_where_no_stage_does_them():
    for combination in COMBINATIONS:
        stage, offload = combination["zero_stage"], combination["offload"]
        for section in ("sft", "align"):
            tree = {section: {name: value for name, value in combination.items() if name != "lora"}}
            if (stage, offload) not in REFUSED:
                parse_config(tree)
                continue
            with pytest.raises(
                UserError, match=rf"{section}.offload={offload} needs {section}.zero_stage=[13].* {stage}:"
            ):
                parse_config(tree)


@pytest.mark.parametrize("combination", [one for one in TAKEN if one["precision"] == "float32"], ids=name_of)
def test_in_float32_training_is_that_of_one_rank_without_zero(trained, alone, combination):
    expected, found = alone[combination["lora"]], outcome(trained, combination)
    assert found["losses"] == pytest.approx(expected["losses"], rel=1e-5)
    assert found["norms"] == pytest.approx(expected["norms"], rel=1e-4)
    assert found["weights"].keys() == expected["weights"].keys()
    for name, value in expected["weights"].items():
        torch.testing.assert_close(found["weights"][name], value, rtol=0, atol=1e-5, msg=name)


@pytest.mark.parametrize("combination", [one for one in TAKEN if one["precision"] == "bfloat16"], ids=name_of)
def test_in_bfloat16_training_goes_the_same_way(trained, alone, combination):
    expected, found = alone[combination["lora"]], outcome(trained, combination)
    assert found["losses"] == pytest.approx(expected["losses"], rel=5e-3)
    assert found["norms"] == pytest.approx(expected["norms"], rel=0.05)
    assert found["weights"].keys() == expected["weights"].keys()
    start = dict(module_of(settings(), combination["lora"]).named_parameters())
    for name, value in start.items():
        # What is frozen has no master in float32.
        if not value.requires_grad:
            torch.testing.assert_close(found["weights"][name].float(), value.detach(), rtol=2**-8, atol=0, msg=name)
    moved, wanted = (
        torch.cat(
            [(one["weights"][name] - value.detach()).flatten() for name, value in start.items() if value.requires_grad]
        )
        for one in (found, expected)
    )
    assert torch.cosine_similarity(moved, wanted, dim=0) > 0.9
    assert moved.norm() / wanted.norm() == pytest.approx(1.0, abs=0.1)


def test_the_gradient_was_clipped_and_the_weights_moved(alone):
    for lora, result in alone.items():
        assert min(result["norms"]) > settings().max_grad_norm
        for name, before in module_of(settings(), lora).named_parameters():
            moved = (result["weights"][name] - before.detach()).abs().max().item()
            assert (moved > 1e-4) == before.requires_grad, name
