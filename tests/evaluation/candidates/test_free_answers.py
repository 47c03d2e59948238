"""Free generation: greedy, batched, and what an answer is a title of."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GenerationConfig, PreTrainedTokenizerFast

from rosepo.config import ScratchConfig, TemplateConfig
from rosepo.data.prompts import PromptBuilder
from rosepo.evaluation.candidates.free_answers import MARGIN, TitleMatcher, answer_limit, greedy_answers
from rosepo.lm.model.scratch import train_tokenizer
from tests.helpers import tiny_builder, tiny_model

VOCABULARY = 400


def slow_answer(model: Any, prompt: np.ndarray, eos: int, limit: int) -> list[int]:
    """One token after another, the whole sequence through the model each time, no padding and no cache."""
    tokens = prompt.tolist()
    while len(tokens) < len(prompt) + limit:
        with torch.inference_mode():
            tokens.append(int(model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax()))
        if tokens[-1] == eos:
            break
    return tokens[len(prompt) :]


def prompts(count: int = 7) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(3, VOCABULARY, size=int(size)) for size in rng.integers(1, 40, size=count)]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_batched_answers_are_those_of_a_slow_loop(family: str) -> None:
    model = tiny_model(family)
    alone = [slow_answer(model, prompt, -1, 8) for prompt in prompts()]
    # An EOS that the models do write, after some prompts and not after others.
    written = [token for answer in alone for token in answer]
    eos = max(set(written), key=lambda token: sum(token in answer[1:-1] for answer in alone))
    expected = [slow_answer(model, prompt, eos, 8) for prompt in prompts()]
    assert 0 < sum(eos in answer for answer in expected) < len(expected)
    for max_tokens in (1, 90):
        found = greedy_answers(model, prompts(), eos, 8, max_tokens)
        assert [answer.tolist() for answer in found] == expected
    assert greedy_answers(model, [], eos, 8) == []


def test_a_models_own_habits_do_not_bend_the_answer() -> None:
    model = tiny_model()
    expected = [answer.tolist() for answer in greedy_answers(model, prompts(), 2, 9)]
    habits = GenerationConfig(
        repetition_penalty=9.0,
        bad_words_ids=[[expected[0][0]]],
        do_sample=True,
        temperature=5.0,
        eos_token_id=[expected[1][0]],
        suppress_tokens=[expected[2][0]],
        min_new_tokens=3,
    )
    model.generation_config = habits
    assert [answer.tolist() for answer in greedy_answers(model, prompts(), 2, 9)] == expected
    assert model.generation_config is habits


def test_an_answer_has_room_for_the_longest_title_and_a_margin_as_far_as_positions_go() -> None:
    builder = tiny_builder(max_length=100)
    longest = builder.longest_completion
    assert answer_limit(tiny_model(max_length=256), builder) == longest + MARGIN
    assert answer_limit(tiny_model("gpt2", max_length=103), builder) == longest + 3
    assert answer_limit(tiny_model(max_length=100), builder) == longest


TITLES = [
    "Alien",
    "Aliens",
    "Alien (2)",
    "千と千尋の神隠し",
    "Le Fabuleux Destin d'Amélie Poulain",
    "Straße",
    "Dr. Strangelove or: " + "How I Learned to Stop Worrying and Love the Bomb, and " * 9,
]


def matcher() -> tuple[TitleMatcher, PromptBuilder, PreTrainedTokenizerFast]:
    tokenizer = train_tokenizer(TITLES, np.ones(len(TITLES), np.int64), ScratchConfig(vocab_size=400))
    builder = PromptBuilder(tokenizer, TITLES, TemplateConfig(), 2048)
    return TitleMatcher(builder, TITLES), builder, tokenizer


def test_every_title_is_itself_and_no_other_by_tokens_and_by_text() -> None:
    match, builder, tokenizer = matcher()
    for item, title in enumerate(TITLES):
        tokens = builder.completion(item)
        text = tokenizer.decode(tokens, skip_special_tokens=True)
        assert text == title
        assert match(tokens, text) == match(tokens[:-1], text) == item
        for cut in range(1, len(tokens) - 1):
            begun = tokenizer.decode(tokens[:cut])
            assert match(tokens[:cut], begun) == (TITLES.index(begun) if begun in TITLES else -1)


@pytest.mark.parametrize(
    ("text", "item"),
    [
        ("alien", 0), (" ALIENS\n", 1), ("Alien  (2)", 2), ("alien(2)", -1), ("Alien 3", -1), ("", -1), (" \n", -1),
        ("le fabuleux destin d'ame\u0301lie poulain", 4), ("STRASSE", 5), ("Alien\nAliens", -1), ("Ａｌｉｅｎ", 0),
    ],
)  # fmt: skip
def test_an_answer_is_a_title_after_the_catalogues_own_normalisation(text: str, item: int) -> None:
    assert matcher()[0](np.array([5, 6]), text) == item


def test_a_title_that_its_tokenizer_cannot_write_back_is_known_by_its_tokens() -> None:
    core = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "\n": 2, "heat": 3, "ran": 4}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", unk_token="<unk>")
    template = TemplateConfig(prefix="", separator="heat")
    builder = PromptBuilder(tokenizer, ["Heat ran", "ran"], template, 64)
    text = tokenizer.decode(builder.completion(0), skip_special_tokens=True)
    assert text != "Heat ran"
    assert TitleMatcher(builder, ["Heat ran", "ran"])(builder.completion(0), text) == 0


def test_where_nothing_ends_titles_an_answer_is_the_title_that_it_begins_with() -> None:
    builder = tiny_builder(10, TemplateConfig(prefix="", separator="", end=""), whole=True)
    matcher = TitleMatcher(builder, [f"title {item}" for item in range(10)])
    assert answer_limit(tiny_model(), builder) == 1
    one, other = builder.title_ids(3), builder.title_ids(7)
    assert matcher.first(np.concatenate([one, other])).tolist() == one.tolist()
    assert matcher(matcher.first(np.concatenate([one, other])), "") == 3
    nothing = np.array([0, 0], dtype=np.int64)
    assert matcher.first(nothing).tolist() == [0, 0]
    assert matcher(nothing, "") == -1
