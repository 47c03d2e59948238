"""The reference pass against one row a completion."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from rosepo.config import TemplateConfig
from rosepo.lm.rows.logps import LogpsModel
from rosepo.lm.rows.plain_rows import plain_logps
from rosepo.lm.titles.title_scores import reference_logps
from tests.helpers import ATTENTIONS, tiny_builder, tiny_model

EOS = 2


def make_groups(negatives: int, prompt_lengths: tuple[int, ...]) -> tuple[list[np.ndarray], list[list[np.ndarray]]]:
    """Prompts of the given lengths, each with 1 + K completions of one to six tokens, some of EOS alone."""
    random = np.random.default_rng(negatives)

    def draw(n: int) -> np.ndarray:
        return random.integers(3, 400, n).astype(np.int32)

    prompts = [draw(length) for length in prompt_lengths]
    lengths = [[1 + (row + column) * 2 % 6 for column in range(1 + negatives)] for row in range(len(prompts))]
    return prompts, [[np.append(draw(n - 1), np.int32(EOS)) for n in row] for row in lengths]


def check_as_plain(
    model: torch.nn.Module, prompts: list[np.ndarray], completions: list[list[np.ndarray]], max_tokens: int | None
) -> None:
    found = reference_logps(LogpsModel(model), prompts, completions, max_tokens)
    for prompt, ids, logps in zip(prompts, completions, found, strict=True):
        with torch.inference_mode():
            expected = plain_logps(model, [prompt] * len(ids), ids)[0].numpy()
        assert logps.dtype == np.float32
        np.testing.assert_allclose(logps, expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("negatives", [0, 1, 3])
@pytest.mark.parametrize(("family", "attention"), ATTENTIONS)
def test_every_family_scores_groups_as_rows_of_their_own(family: str, attention: str, negatives: int) -> None:
    model = tiny_model(family)
    model.set_attn_implementation(attention)
    prompts, completions = make_groups(negatives, (17, 1, 40, 3, 38))
    check_as_plain(model, prompts, completions, 2**11)


def test_prompts_of_one_token_and_titles_of_eos_alone_are_scored() -> None:
    prompts = [np.array([token], dtype=np.int32) for token in (5, 6)]
    eos = np.array([EOS], dtype=np.int32)
    check_as_plain(tiny_model("gpt2"), prompts, [[eos], [eos, np.array([9, EOS], dtype=np.int32)]], None)


def test_prompts_that_fill_the_models_positions_are_scored() -> None:
    prompts, completions = make_groups(2, (30, 27))
    longest = max(len(prompt) + len(ids) for prompt, rows in zip(prompts, completions) for ids in rows)
    check_as_plain(tiny_model("gpt2", max_length=longest), prompts, completions, None)


def test_a_window_shorter_than_the_prompt_is_scored_row_by_row() -> None:
    model = LogpsModel(tiny_model("mistral", sliding_window=24))
    prompts, completions = make_groups(1, (40, 10))
    check_as_plain(model.model, prompts, completions, None)
    reference_logps(model, prompts, completions)
    assert model.obstacle is not None
    assert "slides over 24 tokens" in model.obstacle


def test_an_adapter_is_part_of_the_reference() -> None:
    model = get_peft_model(tiny_model(), LoraConfig(target_modules="all-linear", init_lora_weights=False)).eval()
    check_as_plain(model, *make_groups(2, (17, 9)), None)


def test_the_model_is_left_as_it_was() -> None:
    model, ids = tiny_model(), torch.arange(3, 20)[None]
    with torch.inference_mode():
        before = model(input_ids=ids).logits
        reference_logps(LogpsModel(model), *make_groups(1, (17, 9)))
        assert torch.equal(model(input_ids=ids).logits, before)


@pytest.mark.parametrize("max_tokens", [1, 200, None])
def test_groups_score_as_rows_of_their_own(max_tokens: int | None) -> None:
    builder, model = tiny_builder(), tiny_model()
    groups = [([1, 2, 3], [4, 5, 6]), ([7], [8]), (list(range(12)), [20, 13, 29, 14])]
    prompts = [builder.prompt(history)[0] for history, _ in groups]
    completions = [[builder.completion(item) for item in items] for _, items in groups]
    check_as_plain(model, prompts, completions, max_tokens)


def make_trajectories(suffix: str, negatives: int) -> tuple[list[np.ndarray], list[list[np.ndarray]]]:
    """The groups of three users at every item boundary, in an order in which families mix."""
    builder = tiny_builder(template=TemplateConfig(suffix=suffix))
    walks = [[3, 1, 4, 15, 9, 2, 6], [5, 8, 20], [3, 1, 22, 23]]
    random = np.random.default_rng(negatives)
    groups = [
        (builder.prompt(walk[:place])[0], [walk[place], *random.choice(np.arange(24, 30), negatives, replace=False)])
        for walk in walks
        for place in range(1, len(walk))
    ]
    groups = [groups[place] for place in random.permutation(len(groups))]
    return [prompt for prompt, _ in groups], [[builder.completion(int(item)) for item in row] for _, row in groups]


@pytest.mark.parametrize(("family", "attention"), ATTENTIONS)
def test_trajectories_score_as_rows_of_their_own(family: str, attention: str) -> None:
    model = tiny_model(family)
    model.set_attn_implementation(attention)
    suffix, max_tokens = ("", None) if attention == "sdpa" else ("Next: ", 120)
    check_as_plain(model, *make_trajectories(suffix, negatives=3), max_tokens)


@pytest.mark.parametrize("suffix", ["", "Next: "])
def test_what_prompts_have_in_common_is_computed_once(suffix: str) -> None:
    model, (prompts, completions) = tiny_model(), make_trajectories(suffix, negatives=1)
    computed: list[int] = []
    model.model.register_forward_pre_hook(
        lambda module, args, kwargs: computed.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    reference_logps(LogpsModel(model), prompts, completions)
    apart = sum(map(len, prompts))
    rests = sum(sum(map(len, group)) for group in completions) + len(prompts) * (2 + 2 * len(suffix))
    longest = sum(sorted(map(len, prompts))[-3:])
    assert sum(computed) < 1.6 * (rests + longest) < apart + rests


def test_no_groups_take_no_time() -> None:
    assert reference_logps(LogpsModel(tiny_model()), [], []) == []
