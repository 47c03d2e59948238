"""Models in bfloat16: what ranks is float32, and a reference is the model that training starts from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from rosepo.lm.model.loading import load_policy
from rosepo.lm.rows.batch import collate
from rosepo.lm.rows.logps import LogpsModel
from rosepo.lm.rows.rows import group_row
from rosepo.lm.titles.beam_search import Decoder
from rosepo.lm.titles.candidate_scores import candidate_logps
from rosepo.lm.titles.title_scores import reference_logps
from tests.helpers import tiny_builder, tiny_model, tiny_tokenizer

N_ITEMS = 30


def loud_model(family: str, factor: float) -> torch.nn.Module:
    """Float32, with logits of the size that trained models have."""
    model = tiny_model(family)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(factor)
    return model


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_titles_are_ranked_by_logits_in_float32(family: str) -> None:
    model, builder = loud_model(family, 40.0).bfloat16(), tiny_builder(N_ITEMS)
    prompts = [builder.prompt(history)[0] for history in ([3], [0, 7, 12, 5])]
    items, scores = Decoder(model, builder, beams=N_ITEMS).top_k(prompts, [np.array([], dtype=np.int64)] * 2, 20)
    listed = candidate_logps(LogpsModel(model, float32_logits=True), builder, prompts, items)
    rounded = candidate_logps(LogpsModel(model), builder, prompts, items)
    np.testing.assert_allclose(listed, scores, atol=0.15)
    assert np.abs(rounded - scores).mean() > 2 * np.abs(listed - scores).mean()
    # The model is as it was: its own logits are rounded.
    ids = torch.from_numpy(prompts[0].astype(np.int64))[None]
    with torch.inference_mode():
        assert model(ids).logits.dtype == torch.bfloat16  # type: ignore[operator]


def test_a_reference_in_the_precision_of_training_gives_rewards_that_begin_at_zero() -> None:
    random = np.random.default_rng(0)
    prompts = [random.integers(3, 400, size).astype(np.int32) for size in random.integers(20, 90, 24)]
    titles = [[random.integers(3, 400, 1 + place % 5).astype(np.int32) for place in range(8)] for _ in prompts]
    trained = LogpsModel(tiny_model("llama").bfloat16())
    with torch.inference_mode():
        start = trained(collate([group_row(*group) for group in zip(prompts, titles, strict=True)]))[0].numpy()
    same = np.concatenate(reference_logps(trained, prompts, titles)) - start
    other = np.concatenate(reference_logps(LogpsModel(tiny_model("llama")), prompts, titles)) - start
    assert abs(same.mean()) < 0.01
    assert np.abs(same).mean() < 0.5 * np.abs(other).mean()


def test_an_adapter_is_held_in_the_precision_of_its_base(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    tiny_model().save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    adapted = get_peft_model(load_policy(tmp_path / "base"), LoraConfig(r=2, target_modules="all-linear"))
    adapted.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    for dtype in (torch.bfloat16, torch.float32):
        model = load_policy(tmp_path / "adapter", dtype=dtype)
        assert {parameter.dtype for parameter in model.parameters()} == {dtype}
