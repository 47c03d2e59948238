from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rosepo.lm.rows.batch import Batch, collate
from rosepo.lm.rows.logps import LogpsModel, plain_reason
from rosepo.lm.rows.plain_rows import plain_logps, separate
from rosepo.lm.rows.rows import Row, group_row
from rosepo.lm.rows.target_logps import token_logps
from tests.helpers import FAMILIES, tiny_model

Groups = list[tuple[np.ndarray, list[np.ndarray]]]


def make_groups(negatives: int, seed: int = 0, vocabulary: int = 400) -> Groups:
    """Prompts of different lengths, each with 1 + K completions of one to five tokens."""
    rng = np.random.default_rng(seed)
    draw = lambda n: rng.integers(3, vocabulary, n).astype(np.int32)  # noqa: E731
    eos = np.array([2], dtype=np.int32)
    return [
        (draw(length), [np.concatenate([draw(rng.integers(0, 5)), eos]) for _ in range(1 + negatives)])
        for length in (3, 17, 40)
    ]


def rows_of(groups: Groups) -> list[Row]:
    return [group_row(prompt, completions) for prompt, completions in groups]


def flatten(groups: Groups) -> tuple[list[np.ndarray], list[np.ndarray]]:
    pairs = [(prompt, completion) for prompt, completions in groups for completion in completions]
    return [prompt for prompt, _ in pairs], [completion for _, completion in pairs]


def gradients(model: torch.nn.Module, logps: torch.Tensor) -> dict[str, torch.Tensor]:
    """Gradients of a sum with different weights, so that one completion cannot stand in for another."""
    model.zero_grad()
    (logps * torch.arange(1, len(logps) + 1, device=logps.device)).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("negatives", [0, 1, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_shared_rows_give_the_log_probs_and_gradients_of_separate_rows(family: str, negatives: int) -> None:
    model, groups = tiny_model(family), make_groups(negatives)
    batch = collate(rows_of(groups))
    assert plain_reason(model, batch) is None
    assert batch.causal == (negatives == 0)
    shared, counts = LogpsModel(model)(batch)
    shared_grads = gradients(model, shared)
    plain, plain_counts = plain_logps(model, *flatten(groups))
    plain_grads = gradients(model, plain)
    assert shared.dtype == torch.float32
    assert counts.tolist() == plain_counts.tolist()
    torch.testing.assert_close(shared, plain, atol=1e-4, rtol=1e-5)
    assert shared_grads.keys() == plain_grads.keys()
    for name, grad in plain_grads.items():
        torch.testing.assert_close(shared_grads[name], grad, atol=1e-4, rtol=1e-4, msg=name)


@pytest.mark.parametrize("negatives", [0, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_rows_give_the_log_probs_and_gradients_of_padded_ones(family: str, negatives: int) -> None:
    model = tiny_model(family)
    rows = [*rows_of(make_groups(negatives)), *rows_of(make_groups(negatives, seed=1))]
    padded, packed = collate(rows), collate(rows, pack_tokens=70)
    assert len(packed.input_ids) < len(rows)
    assert packed.input_ids.numel() < padded.input_ids.numel()
    assert plain_reason(model, packed) is None
    expected, counts = LogpsModel(model)(padded)
    found, found_counts = LogpsModel(model)(packed)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)
    assert found_counts.tolist() == counts.tolist()
    expected_grads = gradients(model, expected)
    for name, grad in gradients(model, found).items():
        torch.testing.assert_close(grad, expected_grads[name], atol=1e-4, rtol=1e-4, msg=name)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_eager_attention_gives_the_same(family: str) -> None:
    model, groups = tiny_model(family), make_groups(2)
    sdpa, _ = LogpsModel(model)(collate(rows_of(groups)))
    model.set_attn_implementation("eager")
    eager, _ = LogpsModel(model)(collate(rows_of(groups)))
    torch.testing.assert_close(eager, sdpa, atol=1e-4, rtol=1e-5)


def test_a_completion_never_sees_another() -> None:
    model, groups = tiny_model(), make_groups(3)
    before, _ = LogpsModel(model)(collate(rows_of(groups)))
    changed = groups[1][1][2]
    groups[1][1][2] = np.concatenate([(changed[:-1] + 7) % 300, np.array([50, 60, 2])]).astype(np.int32)
    after, _ = LogpsModel(model)(collate(rows_of(groups)))
    others = [index for index in range(12) if index != 6]
    torch.testing.assert_close(after[others], before[others], atol=1e-5, rtol=1e-6)
    assert abs(after[6] - before[6]) > 0.1


def test_padding_changes_nothing_and_gives_no_nan() -> None:
    model, groups = tiny_model("gpt2"), make_groups(1)
    tight, _ = LogpsModel(model)(collate(rows_of(groups)))
    # Longer than the table of positions: padding must not be looked up there.
    wide, _ = LogpsModel(model)(collate(rows_of(groups), pad_to=300))
    assert torch.isfinite(gradients(model, wide)["transformer.wte.weight"]).all()
    torch.testing.assert_close(wide, tight, atol=1e-5, rtol=1e-6)
    single, _ = LogpsModel(model)(collate(rows_of(make_groups(0)), pad_to=300))
    expected, _ = plain_logps(model, *flatten(make_groups(0)))
    torch.testing.assert_close(single, expected, atol=1e-4, rtol=1e-5)


def test_activation_checkpointing_changes_no_gradient() -> None:
    model, groups = tiny_model(), make_groups(1)
    model.train()
    batch = collate(rows_of(groups))
    expected = gradients(model, LogpsModel(model)(batch)[0])
    with warnings.catch_warnings(action="error", category=FutureWarning):
        checkpointed = LogpsModel(model, activation_checkpointing=True)
    checked = gradients(model, checkpointed(batch)[0])
    for name, grad in expected.items():
        torch.testing.assert_close(checked[name], grad, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("max_logits", [1, 400 * 7])
def test_chunks_of_the_output_layer_change_neither_values_nor_gradients(max_logits: int) -> None:
    model, groups = tiny_model(tie_word_embeddings=True), make_groups(2)
    batch = collate(rows_of(groups))
    whole, _ = LogpsModel(model)(batch)
    expected = gradients(model, whole)
    chunked, _ = LogpsModel(model, max_logits=max_logits)(batch)
    torch.testing.assert_close(chunked, whole, atol=1e-5, rtol=1e-6)
    for name, grad in gradients(model, chunked).items():
        torch.testing.assert_close(grad, expected[name], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("family", "tied"), [("llama", True), ("llama", False), ("gemma", True), ("gpt2", True)])
@pytest.mark.parametrize("max_logits", [1, 400 * 7])
def test_chunks_change_nothing_in_bfloat16(family: str, tied: bool, max_logits: int) -> None:
    wrapped = LogpsModel(tiny_model(family, tie_word_embeddings=tied)).bfloat16()
    embeddings = wrapped.model.get_input_embeddings()
    assert (wrapped.model.get_output_embeddings().weight is embeddings.weight) == tied
    batch = collate(rows_of(make_groups(2)))
    whole, _ = wrapped(batch)
    expected = gradients(wrapped, whole)
    wrapped.max_logits = max_logits
    chunked, _ = wrapped(batch)
    assert chunked.dtype == torch.float32
    torch.testing.assert_close(chunked, whole, atol=1e-2, rtol=1e-3)
    found = gradients(wrapped, chunked)
    assert found.keys() == expected.keys()
    for name, grad in expected.items():
        # Sums of the chunks' gradients are rounded to bfloat16 once a chunk.
        difference, size = (found[name] - grad).float().norm(), grad.float().norm()
        assert difference <= 0.03 * size, (name, float(difference / size))


def test_token_log_probs_are_taken_in_float32() -> None:
    head = torch.nn.Linear(8, 50, bias=False, dtype=torch.bfloat16)
    hidden = torch.randn(4, 8, dtype=torch.bfloat16)
    source, targets = torch.tensor([0, 0, 2, 3]), torch.tensor([1, 4, 9, 16])
    logps = token_logps(head, hidden, source, targets)
    expected = head(hidden).float().log_softmax(-1)[source, targets]
    assert logps.dtype == torch.float32
    torch.testing.assert_close(logps, expected)


@pytest.mark.parametrize(
    ("family", "changes", "word"),
    [
        ("mistral", {"sliding_window": 8}, "slides"),
        ("qwen2", {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 1}, "slides"),
        ("gemma2", {"sliding_window": 8}, "slides"),
        ("cohere", {}, "cohere"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "rotary"),
    ],
)
def test_models_that_cannot_share_a_prefix_take_the_plain_path_and_know_why(
    family: str, changes: dict[str, object], word: str
) -> None:
    model, groups = tiny_model(family, **changes), make_groups(2)
    wrapped = LogpsModel(model)
    assert wrapped.obstacle is None
    first, counts = wrapped(collate(rows_of(groups)))
    expected, expected_counts = plain_logps(model, *flatten(groups))
    torch.testing.assert_close(first, expected, atol=1e-5, rtol=1e-6)
    assert counts.tolist() == expected_counts.tolist()
    assert word in str(wrapped.obstacle)


SLIDING = {
    "mistral": {"sliding_window": 8},
    "qwen2": {"sliding_window": 8, "use_sliding_window": True, "layer_types": ["full_attention", "sliding_attention"]},
    "gemma2": {"sliding_window": 8, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0},
    "gemma3_text": {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
}
SCALED = {
    "cohere": {"logit_scale": 0.3},
    "granite": {"logits_scaling": 4.0},
}


@pytest.mark.parametrize("pack_tokens", [None, 70])
@pytest.mark.parametrize(("family", "changes"), [*SLIDING.items(), *SCALED.items()])
@torch.no_grad()
def test_windows_and_scaled_logits_are_those_of_the_model_itself(
    family: str, changes: dict[str, object], pack_tokens: int | None
) -> None:
    model, groups = tiny_model(family, **changes), make_groups(2)
    batch = collate(rows_of(groups), pack_tokens=pack_tokens)
    assert plain_reason(model, batch) is not None
    found, _ = LogpsModel(model, attention="auto")(batch)
    for place, (prompt, completion) in enumerate(zip(*flatten(groups), strict=True)):
        # One sequence, unpadded, through the model's own forward: its own mask, scale and cap.
        ids = torch.from_numpy(np.concatenate([prompt, completion]).astype(np.int64))
        logps = model(input_ids=ids[None]).logits[0].log_softmax(-1)[len(prompt) - 1 : -1]
        expected = logps.gather(1, ids[len(prompt) :, None]).sum()
        torch.testing.assert_close(found[place], expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("family", ["gemma2", "gemma3_text"])
@torch.no_grad()
def test_capped_logits_share_a_prefix(family: str) -> None:
    caps = {"final_logit_softcapping": 3.0, "attn_logit_softcapping": 5.0} if family == "gemma2" else {}
    model, groups = tiny_model(family, **({"final_logit_softcapping": 3.0} | caps)), make_groups(2)
    batch = collate(rows_of(groups))
    assert plain_reason(model, batch) is None
    expected = plain_logps(model, *flatten(groups))[0]
    torch.testing.assert_close(LogpsModel(model)(batch)[0], expected, atol=1e-4, rtol=1e-5)
    model.config.final_logit_softcapping = None
    assert (LogpsModel(model)(batch)[0] - expected).abs().max() > 0.1


@torch.no_grad()
def test_a_window_matters_to_the_rows_of_the_tests_above() -> None:
    groups = make_groups(2)
    without, within = (plain_logps(tiny_model("mistral", sliding_window=w), *flatten(groups))[0] for w in (None, 8))
    assert (without - within).abs().max() > 0.1


def test_a_window_longer_than_the_rows_is_no_obstacle() -> None:
    model, groups = tiny_model("mistral", sliding_window=64), make_groups(3)
    batch = collate(rows_of(groups))
    assert batch.input_ids.shape[1] >= 48
    assert plain_reason(model, batch) is None
    torch.testing.assert_close(
        LogpsModel(model)(batch)[0], plain_logps(model, *flatten(groups))[0], atol=1e-4, rtol=1e-5
    )


def test_adapters_share_prefixes_too() -> None:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, lora_dropout=0.0)
    model = get_peft_model(tiny_model("qwen3"), config).eval()
    groups = make_groups(2)
    shared, _ = LogpsModel(model)(collate(rows_of(groups)))
    shared_grads = gradients(model, shared)
    plain, _ = plain_logps(model, *flatten(groups))
    torch.testing.assert_close(shared, plain, atol=1e-4, rtol=1e-5)
    with model.disable_adapter():
        base, _ = LogpsModel(model)(collate(rows_of(groups)))
    assert (base - shared).abs().max() > 0.01
    for name, grad in gradients(model, plain).items():
        assert "lora_" in name
        torch.testing.assert_close(shared_grads[name], grad, atol=1e-4, rtol=1e-4)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 4), st.integers(0, 10_000), st.none() | st.integers(1, 120))
def test_separate_gives_back_prompts_and_completions(negatives: int, seed: int, pack_tokens: int | None) -> None:
    # Three tokens only, so that completions often begin alike and lie on the trunk.
    groups = make_groups(negatives, seed, vocabulary=5)
    batch = Batch.from_numpy(collate(rows_of(groups), pack_tokens=pack_tokens).to_numpy())
    prompts, completions = separate(batch)
    for got, expected in zip((prompts, completions), flatten(groups), strict=True):
        assert [part.tolist() for part in got] == [part.tolist() for part in expected]


def test_a_cast_to_bfloat16_leaves_rotary_frequencies_exact() -> None:
    wrapped = LogpsModel(tiny_model())
    frequencies = wrapped.model.model.rotary_emb.inv_freq.clone()
    wrapped.bfloat16()
    assert wrapped.model.lm_head.weight.dtype == torch.bfloat16
    assert torch.equal(wrapped.model.model.rotary_emb.inv_freq, frequencies)
    sums, _ = wrapped(collate(rows_of(make_groups(1))))
    assert sums.dtype == torch.float32
