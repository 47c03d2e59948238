"""Attention by blocks is attention by mask, and refused where it cannot be. Its gradients: test_gpu.py."""

from __future__ import annotations

import functools
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.attention.flex_attention import create_mask, flex_attention

from rosepo.config import parse_config
from rosepo.lm.model.dropout import disable_dropout
from rosepo.lm.model.policy import validate_model
from rosepo.lm.rows import attention
from rosepo.lm.rows.attention import BY_BLOCKS, block_mask
from rosepo.lm.rows.batch import Batch, collate, dense_mask
from rosepo.lm.rows.logps import LogpsModel
from rosepo.lm.rows.plain_rows import plain_logps
from rosepo.lm.rows.rows import group_row, trajectory_rows
from rosepo.run.resources import request_of, use_gpu
from rosepo.utils.errors import UserError
from tests.helpers import FAMILIES, tiny_builder, tiny_model, tiny_tokenizer
from tests.lm.rows.test_logps import flatten, make_groups, rows_of

WIDE = {"gpt2": {"n_embd": 64}}


def frozen(family: str):
    """FlexAttention has no backward pass on a CPU, nor heads under 16."""
    model = tiny_model(family, **WIDE.get(family, {"head_dim": 16})).requires_grad_(False)
    disable_dropout(model)
    return model


def batches() -> dict[str, Batch]:
    groups = [*rows_of(make_groups(2)), *rows_of(make_groups(2, seed=1))]
    builder = tiny_builder(30)
    trajectory = trajectory_rows(builder, list(range(12)), 9)
    return {
        "padded": collate(groups),
        "packed": collate(groups, pack_tokens=70),
        "long": collate(groups, pad_to=160),  # more than one block
        "trajectories": collate(trajectory),
    }


@pytest.fixture
def compiled(monkeypatch):
    """The compiled attention, its graphs run as they are: Dynamo alone decides how often it is compiled."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    torch._dynamo.reset()
    attention._compiled.cache_clear()
    yield attention._compiled()
    attention._compiled.cache_clear()
    torch._dynamo.reset()


def test_lines_blocks_heads_and_gradients_together_do_not_exceed_the_limit_of_compiling(compiled):
    rng = np.random.default_rng(0)
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        for lines, pad_to, groups, grad in itertools.product((1, 2), (100, 300), (1, 2), (True, False)):
            ids = [rng.integers(3, 400, 20), [rng.integers(3, 400, 4)]]
            mask = block_mask(collate([group_row(*ids)] * lines, pad_to=pad_to))
            query, key = torch.randn(lines, 2 * groups, mask.shape[-1], 16), torch.randn(lines, 2, mask.shape[-1], 16)
            with torch.set_grad_enabled(grad):
                options = {"block_mask": mask, "scale": 0.25, "enable_gqa": groups > 1}
                torch.testing.assert_close(
                    compiled(query, key, key, **options), flex_attention(query, key, key, **options)
                )


@pytest.mark.parametrize("kind", ["padded", "packed", "long", "trajectories"])
def test_blocks_let_through_what_the_mask_does(kind):
    batch = batches()[kind]
    lines, length = batch.input_ids.shape
    mask = block_mask(batch)
    assert mask.shape == (lines, 1, length, length)
    found = create_mask(mask.mask_mod, lines, 1, length, length, device="cpu")
    assert torch.equal(found, dense_mask(batch))
    blocks = mask.to_dense()[:, 0].bool()
    size = mask.BLOCK_SIZE[0]
    for row in range(blocks.shape[1]):
        for column in range(blocks.shape[2]):
            part = found[:, 0, row * size : (row + 1) * size, column * size : (column + 1) * size]
            assert torch.equal(blocks[:, row, column], part.flatten(1).any(1))


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "gemma2"])
def test_attention_by_blocks_gives_the_log_probs_of_attention_by_mask(family):
    expected_model, model = frozen(family), LogpsModel(frozen(family), attention="flex")
    assert model.model.config._attn_implementation == BY_BLOCKS
    for kind in ("packed", "trajectories"):
        batch = batches()[kind]
        expected, _ = LogpsModel(expected_model)(batch)
        found, _ = model(batch)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5, msg=kind)


def test_attention_by_blocks_takes_the_types_of_autocast():
    model, batch = frozen("llama"), batches()["packed"]
    with torch.autocast("cpu", torch.bfloat16):
        expected, _ = LogpsModel(model)(batch)
        found, _ = LogpsModel(model, attention="flex")(batch)
    torch.testing.assert_close(found, expected, atol=0.5, rtol=0.02)


def test_auto_is_a_mask_on_a_cpu_whose_model_trains_and_saves_as_it_was(tmp_path):
    model, groups = tiny_model("llama", head_dim=16), make_groups(2)
    wrapped = LogpsModel(model, attention="auto")
    found, _ = wrapped(collate(rows_of(groups)))
    found.sum().backward()
    expected, _ = plain_logps(tiny_model("llama", head_dim=16), *flatten(groups))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)
    model.save_pretrained(tmp_path)
    assert BY_BLOCKS not in (tmp_path / "config.json").read_text()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_attention_that_is_named_is_used(attention):
    model = tiny_model("qwen3")
    LogpsModel(model, attention=attention)
    assert model.config._attn_implementation == attention


@pytest.mark.parametrize(
    ("family", "changes", "words"),
    [
        ("llama", {}, "heads of 16 and more, and the model's are of 8"),
        ("gpt2", {"n_embd": 64}, "no dropout of attention"),
        ("gemma2", {"head_dim": 16}, "no cap of attention"),
        ("bloom", {"num_attention_heads": 2}, "model type bloom takes one row a completion"),
    ],
)
def test_attention_by_blocks_is_refused_where_it_cannot_be(family, changes, words):
    model = tiny_model(family, **changes)
    before = model.config._attn_implementation
    with pytest.raises(UserError, match=f"attention=flex: .*{words}.*; use attention=auto"):
        LogpsModel(model, attention="flex")
    LogpsModel(model, attention="auto")
    assert model.config._attn_implementation == before


def test_an_attention_that_a_model_has_not_is_refused_before_work(tmp_path: Path):
    tiny_model("gpt2", n_embd=64).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    settings = {"model": {"path": str(tmp_path), "max_length": 128}}
    with pytest.raises(UserError, match=r"^sft.attention=flex: .* no dropout"):
        validate_model(parse_config(settings | {"sft": {"attention": "flex"}}))
    # Alignment trains without dropout.
    validate_model(parse_config(settings | {"align": {"attention": "flex"}}))
    assert json.loads((tmp_path / "config.json").read_text())["attn_pdrop"] == 0.1


@pytest.mark.parametrize("section", ["sft", "align"])
@pytest.mark.parametrize("gpu", ["auto", "no"])
def test_attention_by_blocks_is_refused_without_a_gpu(section, gpu):
    config = parse_config({section: {"attention": "flex", "gpu": gpu}})
    with pytest.raises(UserError, match=rf"{section}.attention=flex needs a GPU, and .*: use {section}.attention=auto"):
        use_gpu(request_of(config, section), 8.0, 0.0 if gpu == "auto" else 1.0)
    config = parse_config({section: {"attention": "flex"}})
    assert use_gpu(request_of(config, section), 8.0, 1.0)
