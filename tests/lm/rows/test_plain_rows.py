"""One row a completion, in passes of a bounded size, against one sequence at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rosepo.lm.rows.plain_rows import plain_logps
from tests.helpers import tiny_model
from tests.lm.rows.test_logps import Groups, flatten, make_groups

# 50,000 entries: as many as make a pass of a few positions, in models whose heads are that wide.
VOCABULARY = 50_000
MODELS: dict[str, dict[str, Any]] = {
    "gpt_neox": {},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "phi": {},
    "gemma2": {"sliding_window": 8, "final_logit_softcapping": 3.0},
    "cohere": {"logit_scale": 0.3},
    "bloom": {"n_head": 4, "n_layer": 2},
}
BOUNDS = (1, 40 * VOCABULARY, 2**40)
"""Logits of a pass: of a row each, of a few rows, of all."""


def one_by_one(model: torch.nn.Module, groups: Groups) -> torch.Tensor:
    """Sums of one unpadded sequence each, all logits kept."""
    found = []
    for prompt, completion in zip(*flatten(groups), strict=True):
        ids = torch.tensor([*prompt.tolist(), *completion.tolist()])
        logits = model(input_ids=ids[None]).logits[0, -len(ids) :]  # learned tokens before the prompt have some too
        logps = logits.float().log_softmax(-1)[len(prompt) - 1 : -1]
        found.append(logps.gather(1, ids[len(prompt) :, None]).sum())
    return torch.stack(found)


def gradients(model: torch.nn.Module, logps: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    (logps * torch.linspace(0.5, 1.5, len(logps))).sum().backward()
    return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize("family", MODELS)
def test_passes_of_any_size_give_what_sequences_one_by_one_give(family: str, bound: int) -> None:
    model, groups = tiny_model(family, VOCABULARY, **MODELS[family]), make_groups(3, vocabulary=VOCABULARY)
    expected = one_by_one(model, groups)
    found, counts = plain_logps(model, *flatten(groups), max_logits=bound)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)
    assert counts.tolist() == [len(completion) for completion in flatten(groups)[1]]
    wanted = gradients(model, expected)
    for name, gradient in gradients(model, found).items():
        torch.testing.assert_close(gradient, wanted[name], atol=1e-4, rtol=1e-4, msg=name)


@pytest.mark.parametrize(("bound", "passes"), [(40 * VOCABULARY, range(3, 8)), (2**40, range(1, 2))])
@torch.no_grad()
def test_logits_of_a_pass_stay_below_their_bound_and_are_those_that_predict(bound: int, passes: range) -> None:
    model, groups = tiny_model("gpt_neox", VOCABULARY), make_groups(3, vocabulary=VOCABULARY)
    sizes: list[int] = []
    model.get_output_embeddings().register_forward_hook(lambda module, inputs, logits: sizes.append(logits.numel()))
    plain_logps(model, *flatten(groups), max_logits=bound)
    assert len(sizes) in passes
    assert max(sizes) <= bound
    if len(sizes) > 1:  # of rows of one prompt, no positions but those of their completions
        assert sum(sizes) <= 2.5 * VOCABULARY * sum(len(completion) for completion in flatten(groups)[1])


@torch.no_grad()
def test_learned_tokens_before_the_prompt_do_not_shift_what_is_scored() -> None:
    from peft import PromptTuningConfig, TaskType, get_peft_model

    torch.manual_seed(0)
    config = PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=5)
    model = get_peft_model(tiny_model("llama"), config).eval()
    groups = make_groups(2)
    expected = one_by_one(model, groups)
    for bound in (1, 2**40):
        torch.testing.assert_close(plain_logps(model, *flatten(groups), bound)[0], expected, atol=1e-4, rtol=1e-5)
    with model.disable_adapter():
        assert (plain_logps(model, *flatten(groups))[0] - expected).abs().max() > 0.1
