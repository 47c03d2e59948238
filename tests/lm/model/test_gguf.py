"""Models in one file of llama.cpp's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter, quantize
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rosepo.lm.model.loading import load_policy, load_tokenizer
from rosepo.lm.model.model_source import find_source
from rosepo.utils.errors import UserError
from tests.helpers import tiny_catalogue

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
IDS = torch.arange(3, 40)[None]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ROSEPO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


def gpt2_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes and merges of them, split as llama.cpp's model "gpt2" splits."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet, special = pre_tokenizers.ByteLevel.alphabet(), ["<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(tiny_catalogue(30).titles, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def model_of(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    torch.manual_seed(0)
    shape = LlamaConfig(vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
                        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128)  # fmt: skip
    return LlamaForCausalLM(shape).eval()


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of queries or keys in the order of llama.cpp's rotary embedding."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(path: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, kind: str = "F32") -> None:
    """As llama.cpp's converter does."""
    writer, shape = GGUFWriter(str(path), "llama"), model.config
    writer.add_block_count(shape.num_hidden_layers)
    writer.add_context_length(shape.max_position_embeddings)
    writer.add_embedding_length(shape.hidden_size)
    writer.add_feed_forward_length(shape.intermediate_size)
    writer.add_head_count(shape.num_attention_heads)
    writer.add_head_count_kv(shape.num_key_value_heads)
    writer.add_layer_norm_rms_eps(shape.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(shape.vocab_size)
    bpe = json.loads(tokenizer.backend_tokenizer.to_str())["model"]  # type: ignore[attr-defined]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__))
    writer.add_token_merges([" ".join(pair) if isinstance(pair, list) else pair for pair in bpe["merges"]])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_bos_token_id(tokenizer.bos_token_id)
    for name, tensor in model.state_dict().items():
        array, layer = tensor.numpy(), name.removeprefix("model.").removesuffix(".weight")
        if layer.startswith("layers."):
            _, number, part = layer.split(".", 2)
            heads = {"attn_q": shape.num_attention_heads, "attn_k": shape.num_key_value_heads}.get(NAMES[part])
            array = array if heads is None else interleaved(array, heads)
            layer = f"blk.{number}.{NAMES[part]}"
        else:
            layer = {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}[layer]
        of = GGMLQuantizationType[kind if array.ndim > 1 else "F32"]
        writer.add_tensor(f"{layer}.weight", quantize(array, of), raw_dtype=of)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model(IDS).logits


@pytest.mark.parametrize(("kind", "error"), [("F32", 1e-5), ("F16", 2e-3), ("Q8_0", 3e-2)])
def test_a_file_is_the_model_that_it_was_made_of(kind: str, error: float, tmp_path: Path, cache: Path) -> None:
    tokenizer = gpt2_tokenizer()
    model = model_of(tokenizer)
    write_gguf(tmp_path / "model.gguf", model, tokenizer, kind)
    found = load_policy(tmp_path / "model.gguf")
    assert (logits(found) - logits(model)).abs().max() < error
    for text in ("Night of the König (1999)\n千と千尋", "Cat's 2049"):
        ids = [
            one(text, add_special_tokens=False)["input_ids"]
            for one in (load_tokenizer(tmp_path / "model.gguf"), tokenizer)
        ]
        assert ids[0] == ids[1]
    (folder,) = cache.iterdir()
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in folder.iterdir()}
    assert not hasattr(LlamaForCausalLM.from_pretrained(folder).config, "quantization_config")


def test_a_folder_with_one_file_is_that_file_and_is_made_once(tmp_path: Path, cache: Path) -> None:
    folder = tmp_path / "package"
    folder.mkdir()
    (folder / "__init__.py").touch()
    write_gguf(folder / "model.gguf", model_of(gpt2_tokenizer()), gpt2_tokenizer())
    first = find_source(str(folder))
    made = (cache / Path(first.path).name / "config.json").stat().st_mtime_ns
    assert find_source(str(folder / "model.gguf")).path == first.path
    assert (cache / Path(first.path).name / "config.json").stat().st_mtime_ns == made
    shutil.copy(folder / "model.gguf", folder / "other.gguf")
    with pytest.raises(UserError, match=r"holds 2 GGUF files, model.gguf for one"):
        find_source(str(folder))
    (folder / "model.gguf").unlink()
    assert find_source(str(folder)).path != first.path  # another file, another model


def test_an_adapter_on_a_file_finds_it_again(tmp_path: Path) -> None:
    write_gguf(tmp_path / "model.gguf", model_of(gpt2_tokenizer()), gpt2_tokenizer())
    adapted = get_peft_model(load_policy(tmp_path / "model.gguf"), LoraConfig(r=2, init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapter")
    assert adapted.active_peft_config.base_model_name_or_path == str(tmp_path / "model.gguf")
    assert torch.equal(logits(load_policy(tmp_path / "adapter")), logits(adapted.eval()))


def test_a_file_that_is_no_model_is_refused_and_nothing_is_left(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + bytes(64))
    with pytest.raises(UserError, match=r"broken.gguf is not a GGUF model that Transformers reads"):
        load_policy(tmp_path / "broken.gguf")
    assert not list(cache.iterdir())
