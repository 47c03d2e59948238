"""Adapters: of any kind they score as PEFT itself does, and without all of their weights they are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from rosepo.config import ModelConfig
from rosepo.lm.model.adapters import adapter_base, check_adapter
from rosepo.lm.model.loading import load_model_config, load_policy
from rosepo.lm.model.model_source import find_source
from rosepo.lm.model.policy import initial_policy
from rosepo.lm.titles.beam_search import Decoder
from rosepo.utils.errors import UserError
from tests.helpers import tiny_builder, tiny_catalogue, tiny_model, tiny_tokenizer

N_ITEMS = 30
LORA: dict[str, Any] = {"r": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
KINDS: dict[str, Callable[[], peft.PeftConfig]] = {
    "lora": lambda: peft.LoraConfig(**LORA),
    "dora": lambda: peft.LoraConfig(**LORA, use_dora=True),
    "rslora": lambda: peft.LoraConfig(**LORA, use_rslora=True),
    "whole head": lambda: peft.LoraConfig(**LORA, modules_to_save=["lm_head"]),
    "whole embeddings": lambda: peft.LoraConfig(**LORA, modules_to_save=["embed_tokens"]),
    "some tokens": lambda: peft.LoraConfig(**LORA, trainable_token_indices=[5, 9, 40]),
    "embeddings too": lambda: peft.LoraConfig(**{**LORA, "target_modules": ["q_proj", "embed_tokens"]}),
    "ia3": lambda: peft.IA3Config(task_type="CAUSAL_LM", target_modules=["k_proj"], feedforward_modules=[]),
    "prompt": lambda: peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tiny_model(vocabulary=len(tiny_tokenizer(N_ITEMS)), tie_word_embeddings=False).save_pretrained(folder)
    tiny_tokenizer(N_ITEMS).save_pretrained(folder)
    return folder


def made(base: Path, folder: Path, kind: str) -> tuple[Path, Any]:
    """The folder of an adapter that changes much, and its model as PEFT has it."""
    torch.manual_seed(0)
    model = peft.get_peft_model(load_policy(base), KINDS[kind]())
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    model.save_pretrained(folder, save_embedding_layers=False)
    return folder, model.eval()


def refusal(folder: Path) -> str:
    """What both say: who loads its weights, and who looks at it before."""
    source = find_source(str(folder))
    with pytest.raises(UserError) as loading:
        load_policy(folder)
    with pytest.raises(UserError) as looking:
        check_adapter(source, load_model_config(find_source(*adapter_base(source))))
    assert str(loading.value) == str(looking.value)
    return str(loading.value)


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_an_adapter_of_any_kind_ranks_titles_as_its_own_forward_scores_them(
    kind: str, base: Path, tmp_path: Path
) -> None:
    folder, model = made(base, tmp_path, kind)
    source = find_source(str(folder))
    check_adapter(source, load_model_config(find_source(*adapter_base(source))))
    builder = tiny_builder(N_ITEMS)
    prompt = builder.prompt([3, 4, 5])[0]
    truth = []
    for item in range(N_ITEMS):
        ids = torch.tensor([*prompt, *builder.completion(item)])
        logps = model(input_ids=ids[None]).logits[0, -len(ids) :].log_softmax(-1)[:-1]
        truth.append(float(logps.gather(1, ids[1:, None])[len(prompt) - 1 :].sum()))
    items, scores = Decoder(load_policy(folder), builder, beams=N_ITEMS).top_k([prompt], [np.array([], int)], N_ITEMS)
    assert items[0].tolist() == np.argsort(-np.array(truth), kind="stable").tolist()
    np.testing.assert_allclose(scores[0], np.sort(truth)[::-1], atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_of_any_kind_can_be_trained_on_or_is_refused(kind: str, base: Path, tmp_path: Path) -> None:
    folder, _ = made(base, tmp_path, kind)
    if kind == "prompt":
        with pytest.raises(UserError, match="does not fit its base"):
            initial_policy(ModelConfig(path=str(folder), max_length=256), tiny_catalogue(N_ITEMS), 0)
        return
    model, _ = initial_policy(ModelConfig(path=str(folder), max_length=256), tiny_catalogue(N_ITEMS), 0)
    assert any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ("kind", "gone"),
    [
        ("lora", "layers.1."),
        ("lora", "lora_B"),
        ("dora", "magnitude"),
        ("whole head", "lm_head"),
        ("whole embeddings", "embed_tokens"),
        ("some tokens", "trainable_tokens"),
        ("prompt", "prompt_embeddings"),
    ],
)
def test_an_adapter_that_lacks_some_of_its_weights_is_refused(kind: str, gone: str, base: Path, tmp_path: Path) -> None:
    folder, _ = made(base, tmp_path, kind)
    weights = load_file(folder / "adapter_model.safetensors")
    kept = {name: value for name, value in weights.items() if gone not in name}
    assert len(kept) < len(weights)
    save_file(kept, folder / "adapter_model.safetensors")
    assert f"has no weights for {len(weights) - len(kept)} parameters" in refusal(folder)


@pytest.mark.parametrize(("old", "new"), [("model.model.", "transformer."), ("self_attn", "attention")])
def test_an_adapter_whose_weights_have_other_names_is_refused(old: str, new: str, base: Path, tmp_path: Path) -> None:
    folder, _ = made(base, tmp_path, "lora")
    weights = load_file(folder / "adapter_model.safetensors")
    renamed = {name.replace(old, new): value for name, value in weights.items()}
    save_file(renamed, folder / "adapter_model.safetensors")
    assert f"{len(weights)} weights that no layer of it takes" in refusal(folder)


def test_an_adapter_of_another_width_is_refused_with_all_that_is_said_of_it(base: Path, tmp_path: Path) -> None:
    folder, _ = made(base, tmp_path, "lora")
    weights = load_file(folder / "adapter_model.safetensors")
    save_file(
        {name: torch.cat([value, value]) for name, value in weights.items()}, folder / "adapter_model.safetensors"
    )
    message = refusal(folder)
    assert "size mismatch" in message
    assert "\n" not in message
    assert len(message) < 1500
