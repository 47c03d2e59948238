"""Which of the models that Transformers loads as causal ones are taken, and what is known of them by their config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from rosepo.config import Config, parse_config
from rosepo.lm.model.loading import load_policy
from rosepo.lm.model.policy import initial_policy, validate_model
from rosepo.utils.errors import UserError
from tests.helpers import tiny_catalogue, tiny_tokenizer

CATALOGUE = tiny_catalogue()


def configure(path: Path, max_length: int = 128) -> Config:
    return parse_config({"model": {"max_length": max_length, "path": str(path)}})


@pytest.mark.parametrize(
    ("family", "changes", "refused"),
    [
        *((family, {}, True) for family in ("bert", "roberta", "xlm-roberta", "electra", "xlnet")),
        ("bert", {"is_decoder": True}, False),
        ("gemma3_text", {"use_bidirectional_attention": True}, True),
        ("llama", {"is_causal": False}, True),
        *((family, {}, False) for family in ("llama", "gpt2", "qwen2", "qwen3", "mistral", "gemma", "gemma3_text")),
        *((family, {}, False) for family in ("opt", "bloom", "gpt_neox", "phi", "phi3", "falcon")),
    ],
)
def test_models_are_refused_where_and_only_where_later_tokens_change_earlier_ones(
    family: str, changes: dict[str, Any], refused: bool, tmp_path: Path
) -> None:
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}
    shape |= {"num_key_value_heads": 4, "d_inner": 48, "ffn_dim": 48, "head_dim": 8, "initializer_range": 0.5}
    known = dir(AutoConfig.for_model(family))
    shape = {name: value for name, value in shape.items() if name in known and (family, name) != ("falcon", "head_dim")}
    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = AutoConfig.for_model(family, vocab_size=90, **shape, **special, **changes)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        first, second = model(torch.tensor([[5, 6, 7, 8], [5, 6, 7, 9]])).logits[:, 0]
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    assert torch.allclose(first, second, atol=1e-6) != refused
    if not refused:
        assert load_policy(tmp_path).config.model_type == family
        return
    for check in (load_policy, lambda path: validate_model(configure(path))):
        with pytest.raises(UserError, match=rf"is a {family} whose tokens attend .*: use a decoder"):
            check(tmp_path)


def test_a_model_of_images_and_text_is_measured_by_its_language_model(tmp_path: Path) -> None:
    text = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 8}
    text |= {"num_key_value_heads": 2, "vocab_size": 400, "max_position_embeddings": 256}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 28, "patch_size": 14}
    tokens = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "image_token_index": 5}
    tokens |= {"boi_token_index": 6, "eoi_token_index": 7, "mm_tokens_per_image": 1}
    config = AutoConfig.for_model("gemma3", text_config=text, vision_config=vision, **tokens)
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    facts = validate_model(configure(tmp_path))
    assert (facts["hidden_size"], facts["layers"], facts["max_positions"]) == (32, 2, 256)
    assert facts["parameters"] == model.num_parameters()
    initial_policy(configure(tmp_path).model, CATALOGUE, 0)
    for check in (validate_model, lambda config: initial_policy(config.model, CATALOGUE, config.seed)):
        with pytest.raises(UserError, match=r"max_length=512 is above the 256"):
            check(configure(tmp_path, max_length=512))
    AutoConfig.for_model(
        "gemma3", text_config={**text, "vocab_size": 300}, vision_config=vision, **tokens
    ).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="the model 300 embeddings"):
        validate_model(configure(tmp_path))
