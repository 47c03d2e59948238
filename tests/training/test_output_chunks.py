"""Ranks that need different numbers of chunks of the output layer, or of passes, under ZeRO-3: each takes all ranks."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from rosepo.config import TrainConfig
from rosepo.lm.rows.batch import Batch, collate
from rosepo.lm.rows.logps import LogpsModel
from rosepo.training.engine import Engine, prepare_process
from rosepo.training.validation import dummy_batch
from tests.helpers import tiny_model
from tests.lm.rows.test_logps import Groups, make_groups, rows_of
from tests.training.ranks import two_ranks

VOCABULARY = 8_000
SMALL = {"num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2,
         "num_key_value_heads": 1, "vocab_size": VOCABULARY, "initializer_range": 0.1}  # fmt: skip
GROUPS = 9
SHARES: dict[int, list[list[slice]]] = {
    1: [[slice(0, GROUPS)]],
    # Of two micro-batches: four chunks against one, then none at all against one.
    2: [[slice(0, 7), slice(7, 8)], [slice(8, 9), slice(0, 0)]],
}
VARIANTS = [
    {"tied": tied, "lora": lora, "checkpointing": checkpointing, "rowwise": rowwise}
    for tied, lora, checkpointing, rowwise in itertools.product((False, True), repeat=4)
]
"""`rowwise`: a model that takes one row a completion, in passes of some rows each."""


def groups_of(step: int) -> Groups:
    return [group for seed in range(3) for group in make_groups(10, 10 * step + seed, VOCABULARY)]


def name_of(variant: dict[str, bool]) -> str:
    return "-".join(name for name, on in variant.items() if on) or "plain"


def trained(variant: dict[str, bool], stage: int, rank: int, world: int) -> dict[str, torch.Tensor] | None:
    """Weights on rank 0 after two steps."""
    train = TrainConfig(zero_stage=stage, batch_size=8, learning_rate=1e-3, warmup_fraction=0.0, micro_batch_size=4)
    family = "gemma2" if variant["rowwise"] else "llama"
    model: Any = tiny_model(family, **SMALL, tie_word_embeddings=variant["tied"])
    if variant["lora"]:
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(1)
        model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    positions = len(collate(rows_of(groups_of(0)[:7])).gather)
    module = LogpsModel(
        model,
        activation_checkpointing=variant["checkpointing"],
        max_logits=(positions // 4 + 1) * VOCABULARY if world > 1 else 2**30,
    ).train()
    parts = SHARES[world][rank]
    engine = Engine(module, train, 2)
    for step in range(2):
        groups = groups_of(step)
        for number, part in enumerate(parts, start=1):
            batch = collate(rows_of(groups[part])) if groups[part] else Batch.from_numpy(dummy_batch())
            logps, _ = engine.forward(batch)
            engine.accumulate(-logps.sum() * bool(groups[part]), units=GROUPS, last=number == len(parts))
        engine.step()
    weights = engine.state_dict()
    engine.close()
    return weights


def train_all(rank: int, out: str) -> None:
    prepare_process()
    for variant in VARIANTS:
        weights = trained(variant, 3, rank, 2)
        if weights is not None:
            whole = {name: value.contiguous().clone() for name, value in weights.items()}
            save_file(whole, Path(out) / f"{name_of(variant)}.safetensors")


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("chunks")
    two_ranks(train_all, str(out))
    return out


@pytest.mark.parametrize("variant", VARIANTS, ids=name_of)
def test_two_ranks_of_unequal_chunks_train_as_one_without_any(together: Path, variant: dict[str, bool]) -> None:
    prepare_process()
    expected = trained(variant, 0, 0, 1)
    found = load_file(together / f"{name_of(variant)}.safetensors")
    assert expected is not None
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-5, msg=name)
