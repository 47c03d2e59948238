"""Rows of input embeddings out of a model's files, against those of the loaded model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from rosepo.lm.model.loading import load_policy
from rosepo.lm.titles import embedding_rows as module
from rosepo.lm.titles.embedding_rows import embedding_rows
from tests.helpers import tiny_model

TOKENS = torch.tensor([0, 7, 7, 399, 5])
PEAK = """
import sys, torch
from pathlib import Path
from rosepo.lm.titles.embedding_rows import embedding_rows
assert embedding_rows(sys.argv[1], torch.tensor([1, 399])).dtype == torch.float32
print(*(line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")))
"""


def whole(folder: Path) -> torch.Tensor:
    return load_policy(folder).get_input_embeddings().weight.detach()[TOKENS]


def unloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "load_policy", lambda *_: pytest.fail("the model was loaded"))


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "gpt_neox", "opt"])
@pytest.mark.parametrize("shards", ["5GB", "20KB"])
def test_rows_of_whole_models_are_read_without_the_model(
    family: str, shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes: dict[str, Any] = {"ffn_dim": 48, "word_embed_proj_dim": 32} if family == "opt" else {}
    tiny_model(family, **changes).to(torch.bfloat16).save_pretrained(tmp_path, max_shard_size=shards)
    expected = whole(tmp_path)
    unloaded(monkeypatch)
    torch.testing.assert_close(embedding_rows(tmp_path, TOKENS), expected, atol=0, rtol=0)


@pytest.mark.parametrize(
    ("settings", "reads"),
    [
        ({"target_modules": ["q_proj"]}, True),
        ({"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}, False),
        ({"target_modules": ["q_proj"], "trainable_token_indices": [5, 7]}, False),
        ({"target_modules": ["q_proj", "embed_tokens"]}, False),
    ],
)
def test_an_adapter_that_changes_embeddings_is_heeded(
    settings: dict[str, Any], reads: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_model().save_pretrained(tmp_path / "base")
    torch.manual_seed(0)
    model = peft.get_peft_model(load_policy(tmp_path / "base"), peft.LoraConfig(task_type="CAUSAL_LM", **settings))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    expected = load_policy(tmp_path / "adapter").get_input_embeddings()(TOKENS).detach()
    if reads:
        unloaded(monkeypatch)
    torch.testing.assert_close(embedding_rows(tmp_path / "adapter", TOKENS), expected, atol=1e-6, rtol=0)


def test_a_tensor_of_another_name_is_found_by_loading_the_model(tmp_path: Path) -> None:
    """As in files of packages that name a model within a model, where two tensors end alike."""
    tiny_model().save_pretrained(tmp_path)
    expected = whole(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    save_file({**weights, "vision.embed_tokens.weight": torch.zeros(400, 32)}, tmp_path / "model.safetensors")
    torch.testing.assert_close(embedding_rows(tmp_path, TOKENS), expected, atol=0, rtol=0)


def peak(folder: Path) -> int:
    """Most memory of a process that reads two rows, in bytes."""
    told = subprocess.run([sys.executable, "-c", PEAK, str(folder)], capture_output=True, text=True, check=True)
    return int(told.stdout) * 1024


@pytest.mark.slow
def test_a_large_model_costs_no_more_memory_than_a_small_one(tmp_path: Path) -> None:
    large, small = tmp_path / "large", tmp_path / "small"
    shape = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 16, "num_key_value_heads": 4}
    tiny_model(vocab_size=128_000, **shape).to(torch.bfloat16).save_pretrained(large)
    tiny_model().save_pretrained(small)
    assert (large / "model.safetensors").stat().st_size > 800 * 2**20
    assert peak(large) < peak(small) + 50 * 2**20
