"""What only a CUDA device can show: the CPU's numbers, and training in bfloat16. Run by `make test-gpu`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from rosepo.lm.model.dropout import disable_dropout
from rosepo.lm.rows.attention import flex_obstacle
from rosepo.lm.rows.batch import collate
from rosepo.lm.rows.logps import LogpsModel
from rosepo.lm.titles.beam_search import Decoder
from rosepo.run.paths import RunPaths
from rosepo.training.rank import fit_in_process
from rosepo.training.sft import sft_task
from tests.helpers import FAMILIES, tiny_builder, tiny_model
from tests.lm.rows.test_logps import gradients, make_groups, rows_of
from tests.training.tiny_run import assert_same_training, lines, losses, tiny_config, weights

DEVICE = "cuda"
SCRATCH = {"hidden_size": 32, "layers": 2, "heads": 2, "intermediate_size": 32, "vocab_size": 300, "dropout": 0.0}
MODEL = {"scratch": SCRATCH, "max_length": 128}
"""Heads of 16, which attention by blocks takes."""
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device on this machine"),
]


@pytest.fixture(autouse=True)
def no_silent_fallback() -> Iterator[None]:
    """Where attention by blocks would be compiled too often it would go on uncompiled: an error here."""
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        yield


@pytest.mark.parametrize("pack_tokens", [None, 70])
@torch.no_grad()
def test_log_probs_on_cuda_are_those_of_the_cpu(pack_tokens: int | None) -> None:
    batch = collate([*rows_of(make_groups(2)), *rows_of(make_groups(2, seed=1))], pack_tokens=pack_tokens)
    expected, counts = LogpsModel(tiny_model())(batch)
    found, found_counts = LogpsModel(tiny_model()).to(DEVICE)(batch.to(DEVICE))
    assert found.device.type == DEVICE
    assert found_counts.tolist() == counts.tolist()
    torch.testing.assert_close(found.cpu(), expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("pack_tokens", [None, 70])
@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "gemma2"])
def test_attention_by_blocks_gives_the_gradients_of_attention_by_mask(family: str, pack_tokens: int | None) -> None:
    batch = collate([*rows_of(make_groups(2)), *rows_of(make_groups(2, seed=1))], pack_tokens=pack_tokens).to(DEVICE)
    model = tiny_model(family, **({"n_embd": 64} if family == "gpt2" else {"head_dim": 16})).to(DEVICE)
    disable_dropout(model)
    expected, _ = LogpsModel(model, attention="sdpa")(batch)
    expected_grads = gradients(model, expected)
    found, _ = LogpsModel(model, attention="flex", activation_checkpointing=True).train()(batch)
    found_grads = gradients(model, found)
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-5)
    for name, grad in expected_grads.items():
        torch.testing.assert_close(found_grads[name], grad, atol=1e-3, rtol=1e-3, msg=name)


@pytest.mark.parametrize(
    ("stage", "offload"), [(1, "optimizer"), (2, "optimizer"), (3, "optimizer"), (3, "parameters")]
)
def test_offloading_does_not_change_training(stage: int, offload: str, tiny_run: RunPaths, tmp_path: Path) -> None:
    for name, settings in (("kept", {}), ("offloaded", {"offload": offload})):
        config = tiny_config(model=MODEL, zero_stage=stage, epochs=1, **settings)
        fit_in_process(sft_task(config, tiny_run), tmp_path / name, gpu=True)
    assert_same_training(tmp_path / "kept", tmp_path / "offloaded", 1e-5)


def test_training_on_cuda_in_bfloat16_lowers_the_loss(tiny_run: RunPaths, tmp_path: Path) -> None:
    task = sft_task(tiny_config(model=MODEL, precision="bfloat16", epochs=6, micro_batch_size=3), tiny_run)
    assert flex_obstacle(task.build().model) is None
    fit_in_process(task, tmp_path, gpu=True)
    found = losses(tmp_path)
    looks = [line["validation_loss"] for line in lines(tmp_path) if "validation_loss" in line]
    assert len(looks) == 4
    assert looks[-1] < looks[0]
    assert found[-1] < 0.8 * found[0]
    assert all(torch.isfinite(value).all() for value in weights(tmp_path).values())


def test_decoding_on_cuda_finds_the_titles_of_the_cpu() -> None:
    builder = tiny_builder(30)
    histories = [np.array(history, dtype=np.int64) for history in ([3], [0, 7, 12, 5], [], [29, 28, 27, 26, 25])]
    prompts = [builder.prompt(history)[0] for history in histories]
    items, scores = Decoder(tiny_model(), builder, beams=10).top_k(prompts, histories, 10)
    found, found_scores = Decoder(tiny_model().to(DEVICE), builder, beams=10).top_k(prompts, histories, 10)
    np.testing.assert_array_equal(found, items)
    np.testing.assert_allclose(found_scores, scores, atol=1e-3)
