"""An adapter that became one with its base, against the adapter on its base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from rosepo.cli.app import app
from rosepo.config import RecommendConfig, parse_config
from rosepo.evaluation.recommend import Answerer
from rosepo.lm.cards.record import model_record
from rosepo.lm.model.loading import load_policy
from rosepo.lm.model.merge import merge_adapter
from rosepo.lm.model.policy import initial_policy, save_policy
from rosepo.utils.errors import UserError
from tests.helpers import tiny_catalogue, tiny_model, tiny_tokenizer

CATALOGUE = tiny_catalogue()
IDS = torch.arange(3, 20)[None]


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits.float()


def base_of(folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    tiny_model("qwen3").to(dtype).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """The folder of an adapter that rosepo trained."""
    base = base_of(tmp_path / "base")
    config = parse_config({"model": {"max_length": 128, "path": str(base), "lora": {"rank": 4}}})
    model, tokenizer = initial_policy(config.model, CATALOGUE, config.seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(len(name)))
    save_policy(tmp_path / "adapter", model, tokenizer, CATALOGUE, model_record(config, "align"))
    return tmp_path / "adapter"


def test_a_merged_model_recommends_what_the_adapter_did_and_needs_no_peft(adapter: Path, tmp_path: Path) -> None:
    out = tmp_path / "models" / "merged"
    told = CliRunner().invoke(app, ["merge", "--model", str(adapter), "--output", str(out)])
    assert told.exit_code == 0, told.output
    assert f"float32; its base was {tmp_path / 'base'}" in told.output
    plain = AutoModelForCausalLM.from_pretrained(out)
    torch.testing.assert_close(logits(plain), logits(load_policy(adapter)), atol=1e-4, rtol=1e-4)
    histories, settings = [np.array([3, 1]), np.array([7])], RecommendConfig(k=5)
    answers = [Answerer(str(folder), settings).answer(histories) for folder in (adapter, out)]
    for old, new in zip(*answers, strict=True):
        assert [row["title"] for row in old] == [row["title"] for row in new]
        np.testing.assert_allclose([row["score"] for row in old], [row["score"] for row in new], atol=2e-4)
    assert sorted(path.name for path in out.parent.iterdir()) == ["merged"]


def test_its_card_shows_how_it_is_used_without_peft(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    merge_adapter(str(adapter), tmp_path / "merged")
    card = (tmp_path / "merged" / "README.md").read_text()
    assert "library_name: transformers" in card
    assert "- lora" not in card
    assert card.count("rosepo merge") == 1
    monkeypatch.chdir(tmp_path / "merged")
    exec(card.split("```python\n")[1].split("```")[0], {})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "settings", [{}, {"use_dora": True}, {"use_rslora": True}, {"modules_to_save": ["lm_head"]}], ids=str
)
def test_any_lora_is_merged_in_the_precision_of_its_base(
    settings: dict[str, Any], dtype: torch.dtype, tmp_path: Path
) -> None:
    base = base_of(tmp_path / "base", dtype)
    torch.manual_seed(0)
    config = peft.LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", init_lora_weights=False, **settings)
    peft.get_peft_model(load_policy(base), config).save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    told = merge_adapter(str(tmp_path / "adapter"), tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert merged.dtype == dtype
    assert told == {
        "base": str(base),
        "parameters": merged.num_parameters(),
        "dtype": str(dtype).removeprefix("torch."),
    }
    expected = logits(load_policy(tmp_path / "adapter"))
    close = 1e-4 if dtype == torch.float32 else 0.1 * float(expected.std())
    torch.testing.assert_close(logits(load_policy(tmp_path / "merged")), expected, atol=close, rtol=1e-4)


def test_what_cannot_be_merged_is_refused_and_nothing_is_written(adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="whole model already"):
        merge_adapter(str(tmp_path / "base"), tmp_path / "new")
    prompt = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5)
    peft.get_peft_model(load_policy(tmp_path / "base"), prompt).save_pretrained(tmp_path / "prompt")
    settings = adapter / "rosepo.json"
    for model, output, words in (
        (tmp_path / "prompt", tmp_path / "new", "learnt tokens before the prompt"),
        (adapter, tmp_path / "base", "exists: name a new folder"),
        (adapter, tmp_path / "new", "base held in nf4"),
    ):
        if "nf4" in words:
            settings.write_text(settings.read_text().replace('"quantize": "none"', '"quantize": "nf4"'))
        told = CliRunner().invoke(app, ["merge", "--model", str(model), "--output", str(output)])
        assert told.exit_code == 2
        assert words in " ".join(told.output.split())
    assert not (tmp_path / "new").exists()
