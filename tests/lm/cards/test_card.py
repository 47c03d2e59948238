from __future__ import annotations

from typing import Any

import pytest
import torch
import yaml
from transformers import BitsAndBytesConfig

from rosepo.config import parse_config
from rosepo.lm.cards.card import model_card
from rosepo.lm.cards.record import model_record
from rosepo.lm.model.quantized import quantization_config
from tests.helpers import tiny_catalogue


def front_matter(card: str) -> dict[str, object]:
    return yaml.safe_load(card.split("---\n")[1])


def test_the_card_names_base_data_template_metrics_and_command() -> None:
    config = parse_config(
        {
            "data": {"dataset": "movietweetings-100k"},
            "model": {"path": "someone/base", "revision": "v2", "lora": {"rank": 8}},
        }
    )
    card = model_card(
        model_record(config, "align", round=2),
        tiny_catalogue(),
        max_new_tokens=9,
        adapter=True,
        figures={"hr@10": 0.21341, "examples": 26_800, "dtype": "bfloat16"},
    )
    head = front_matter(card)
    assert head["base_model"] == "someone/base"
    assert head["library_name"] == "peft"
    assert head["datasets"] == ["movietweetings-100k"]
    assert "lora" in head["tags"]  # type: ignore[operator]
    for part in (
        "rank 8",
        "`v2`",
        "30 items",
        "| hr@10 | 0.2134 |",
        "| examples | 26,800 |",
        "rosepo align --round 2 --config config.yaml",
        "someone/base",
    ):
        assert part in card


def card_of(align: dict[str, object], figures: dict[str, object] | None = None) -> str:
    record = model_record(parse_config({"align": align}), "align", figures=figures)
    return model_card(record, tiny_catalogue(), max_new_tokens=9)


def test_a_loss_is_credited_to_what_its_smoothing_makes_of_it() -> None:
    assert "RosePO, arXiv 2410.12519) (ε ≤ 0.3) after" in card_of({"loss": "pairwise", "epsilon_max": 0.3})
    for align, words in (
        ({"loss": "pairwise", "epsilon": "zero"}, "DPO (arXiv 2305.18290) (ε = 0)"),
        ({"loss": "pairwise", "epsilon": "spa"}, "DPO with SPA smoothing (arXiv 2406.04412)"),
        (
            {"loss": "pairwise", "epsilon": "constant", "epsilon_value": 0.2},
            "conservative DPO (one ε = 0.2 for all pairs)",
        ),
        ({"loss": "simpo", "sft_weight": 0.3}, "SimPO (arXiv 2405.14734) (γ = 0.5, no reference, SFT weight 0.3)"),
    ):
        card = card_of(align)
        assert words in card
        assert "2410.12519" not in card
    assert "one ε = 0.123 for" in card_of({"loss": "pairwise", "epsilon": "constant"}, {"epsilon_value": 0.123})


def test_the_card_of_an_adapter_on_a_quantized_base_says_so_and_loads_it_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rosepo.lm.model.quantized.check_quantization", lambda quantize: None)
    for quantize in ("nf4", "int8"):
        config = parse_config({"model": {"path": "someone/base", "lora": {"rank": 8, "quantize": quantize}}})
        record = model_record(config, "sft")
        card = model_card(record, tiny_catalogue(), max_new_tokens=9, adapter=True, quantize=quantize)
        assert f"LoRA adapter of rank 8, on a base in {quantize} |" in card
        script = card.split("```python\n")[1].split("```")[0]
        scope: dict[str, Any] = {"torch": torch, "BitsAndBytesConfig": BitsAndBytesConfig}
        exec(script[script.index("held =") : script.index("model =")], scope)
        assert scope["held"].to_dict() == quantization_config(quantize, torch.float32).to_dict()
        assert "from_pretrained(folder, quantization_config=held)" in script
        assert "import AutoTokenizer, BitsAndBytesConfig\n" in script
    assert "BitsAndBytes" not in card_of({})


def test_a_local_base_stays_out_of_the_front_matter(tmp_path: object) -> None:
    config = parse_config({"model": {"path": str(tmp_path)}})
    card = model_card(model_record(config, "sft"), tiny_catalogue(), max_new_tokens=9)
    assert "base_model" not in front_matter(card)
    assert "datasets" not in front_matter(card)
    assert str(tmp_path) in card
    assert "rosepo sft --config" in card
