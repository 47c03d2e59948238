"""Weights that are given away as they are read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from rosepo.config import ModelConfig
from rosepo.lm.model.loading import load_policy
from rosepo.lm.model.policy import initial_policy
from rosepo.lm.model.reading import given_to
from tests.helpers import tiny_catalogue, tiny_model, tiny_tokenizer
from tests.lm.model.test_adapters import KINDS, made

N_ITEMS = 30


class Taker:
    """Empties what it is given, and keeps it."""

    def __init__(self) -> None:
        self.taken: list[torch.Tensor] = []

    def __call__(self, parameter: nn.Parameter) -> None:
        self.taken.append(parameter.data)
        parameter.data = torch.empty(0)


def base_folder(folder: Path, tied: bool) -> Path:
    tiny_model(vocabulary=len(tiny_tokenizer(N_ITEMS)), tie_word_embeddings=tied).save_pretrained(folder)
    tiny_tokenizer(N_ITEMS).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("tied", [True, False])
def test_matrices_are_given_one_by_one_and_embeddings_and_vectors_stay(tmp_path: Path, tied: bool) -> None:
    folder, taker = base_folder(tmp_path, tied), Taker()
    with given_to(taker):
        model = load_policy(folder)
    weights = load_file(folder / "model.safetensors")
    left = {name for name, parameter in model.named_parameters() if not parameter.numel()}
    matrices = {name for name, value in weights.items() if value.dim() > 1}
    assert left == matrices - {"model.embed_tokens.weight", "lm_head.weight"}
    assert len(taker.taken) == len(left) > 4
    assert all(any(torch.equal(weights[name], value) for value in taker.taken) for name in left)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    assert "HF_DEACTIVATE_ASYNC_LOAD" not in os.environ
    assert all(parameter.numel() for parameter in load_policy(folder).parameters())


def test_embeddings_that_are_said_to_be_tied_but_differ_are_left_so(tmp_path: Path) -> None:
    folder = base_folder(tmp_path, tied=True)
    weights = load_file(folder / "model.safetensors")
    save_file(weights | {"lm_head.weight": weights["model.embed_tokens.weight"] + 1}, folder / "model.safetensors")
    with given_to(Taker()):
        model = load_policy(folder)
    assert model.lm_head.weight is not model.model.embed_tokens.weight
    assert torch.equal(model.lm_head.weight, model.model.embed_tokens.weight + 1)


@pytest.mark.parametrize("kind", KINDS)
def test_the_base_of_an_adapter_that_may_look_at_it_is_kept(tmp_path: Path, kind: str) -> None:
    folder, _ = made(base_folder(tmp_path / "base", tied=False), tmp_path / "adapter", kind)
    taker = Taker()
    with given_to(taker):
        model = load_policy(folder, trainable=kind != "prompt")
    assert bool(taker.taken) == (kind in ("lora", "rslora", "embeddings too"))
    whole = dict(load_policy(folder, trainable=kind != "prompt").named_parameters())
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == whole[name].requires_grad
        assert not parameter.numel() or torch.equal(parameter, whole[name]), name


@pytest.mark.parametrize(("lora", "given"), [({}, True), ({"dora": True}, False)])
def test_a_fresh_adapter_is_the_same_on_a_base_that_was_given_away(
    tmp_path: Path, lora: dict[str, Any], given: bool
) -> None:
    base = base_folder(tmp_path, tied=True)
    config = ModelConfig(path=str(base), max_length=64, lora={"rank": 2, **lora})
    taker = Taker()
    with given_to(taker):
        model, _ = initial_policy(config, tiny_catalogue(N_ITEMS), 0)
    assert bool(taker.taken) == given
    whole = dict(initial_policy(config, tiny_catalogue(N_ITEMS), 0)[0].named_parameters())
    adapter = {name: value for name, value in model.named_parameters() if value.requires_grad}
    assert any("lora_A" in name for name in adapter)
    assert all(torch.equal(value, whole[name]) for name, value in adapter.items())
