"""Figures of free answers: pure functions of answers and lists; what a model that has learned writes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rosepo.config import ScratchConfig, TemplateConfig
from rosepo.data.prompts import PromptBuilder
from rosepo.evaluation.candidates.free_answers import TitleMatcher, answer_limit, greedy_answers
from rosepo.evaluation.candidates.free_generation import SERIES, answer_series, named_candidate
from rosepo.lm.model.scratch import train_tokenizer
from rosepo.lm.rows.batch import collate
from rosepo.lm.rows.logps import LogpsModel
from rosepo.lm.rows.rows import group_row
from tests.helpers import tiny_model

LONG = "Dr. Strangelove or: How I Learned to Stop Worrying and Love the Bomb"


@pytest.mark.parametrize(
    ("answer", "titles", "place"),
    [
        ("Heat", ["Ran", "Heat"], 1),
        (" the answer is HEAT, I think", ["Ran", "Heat"], 1),
        ("Aliens", ["Alien", "Aliens"], -1),  # both are contained: not valid, although it is a candidate word by word
        ("Alien", ["Alien", "Aliens"], 0),
        ("Aliens", ["Ran", "Aliens"], 1),
        ("Aliens", ["Alien", "Ran"], 0),  # a hit on the wrong film
        ("Heat and Ran", ["Heat", "Ran"], -1),
        ("Hea", ["Heat"], -1),  # the other way round does not count
        ("千と千尋の神隠し", ["千と千尋", "Ran"], 0),
        ("ÅNGSTRÖM", ["ångström", "Ran"], 0),
        (LONG.upper(), ["Heat", LONG], 1),
        (LONG, ["Ran", LONG], -1),  # "Strangelove" has Ran in it
        (LONG[:40], [LONG], -1),
        ("Solaris (2)", ["Solaris", "Solaris (2)"], -1),
        ("", ["Ran"], -1),
    ],
)
def test_the_substring_rule_is_that_of_llaras_code(answer: str, titles: list[str], place: int) -> None:
    assert named_candidate(answer, titles) == place


def test_every_figure_counts_what_its_name_says() -> None:
    titles = ["Alien", "Aliens", "Heat", "Ran", "Solaris"]
    candidates = np.array([[0, 2], [1, 3], [2, 3], [4, 0], [1, 0]])
    targets = np.array([0, 3, 2, 4, 1])
    answers = [("alien", 0), ("Aliens", 1), ("Heat!", -1), ("Ran", 3), ("Aliens", 1)]
    texts, items = [text for text, _ in answers], np.array([item for _, item in answers])
    found = answer_series(texts, items, candidates, targets, titles)
    assert tuple(found) == SERIES
    nan = float("nan")
    np.testing.assert_array_equal(found["hr@1"], [1, 0, 0, 0, 1])
    np.testing.assert_array_equal(found["valid_ratio"], [1, 1, 0, 0, 1])
    np.testing.assert_array_equal(found["hr@1_valid"], [1, 0, nan, nan, 1])
    np.testing.assert_array_equal(found["hr@1_substring"], [1, 0, 1, 0, 0])
    np.testing.assert_array_equal(found["valid_ratio_substring"], [1, 1, 1, 0, 0])
    np.testing.assert_array_equal(found["hr@1_substring_valid"], [1, 0, 1, nan, nan])


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(-1, 9)), min_size=1, max_size=30))
def test_hits_over_all_answers_are_hits_over_valid_ones_times_their_share(rows: list[tuple[int, int]]) -> None:
    titles = [f"film {chr(97 + item)}" for item in range(10)]
    slots, items = (np.array(column) for column in zip(*rows))
    candidates = np.tile(np.arange(6), (len(rows), 1))
    texts = [titles[item] if item >= 0 else "?" for item in items]
    found = answer_series(texts, items, candidates, slots, titles)
    for rule in ("", "_substring"):
        valid = found[f"hr@1{rule}_valid"]
        among = 0.0 if np.isnan(valid).all() else float(np.nanmean(valid))
        assert found[f"hr@1{rule}"].mean() == pytest.approx(among * found[f"valid_ratio{rule}"].mean())
        assert ((found[f"hr@1{rule}"] == 0) | (found[f"valid_ratio{rule}"] == 1)).all()
    # Titles of which none is part of another: both rules agree.
    np.testing.assert_array_equal(found["hr@1"], found["hr@1_substring"])


@pytest.mark.slow
def test_a_model_that_has_learned_answers_freely_with_the_right_candidate() -> None:
    titles = [*(f"Film {chr(65 + number % 26)}{number}" for number in range(40)), "Alien", "Aliens"]
    template = TemplateConfig(candidates=True)
    tokenizer = train_tokenizer(titles, np.full(42, 50), ScratchConfig(vocab_size=500), template)
    builder, rng = PromptBuilder(tokenizer, titles, template, 128), np.random.default_rng(0)

    def examples(n: int) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
        """The right one of five is the next item of the ring."""
        histories = [(start + np.arange(3)) % 42 for start in rng.integers(42, size=n)]
        targets = np.array([(history[-1] + 1) % 42 for history in histories])
        free = [np.setdiff1d(np.arange(42), [*history, target]) for history, target in zip(histories, targets)]
        others = [rng.choice(items, 4, replace=False) for items in free]
        return histories, np.array([rng.permutation([t, *o]) for t, o in zip(targets, others)]), targets

    shape = {"max_length": 128, "hidden_size": 48, "initializer_range": 0.05}
    model = LogpsModel(tiny_model(vocab_size=len(tokenizer), **shape)).train()
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(150):
        histories, candidates, targets = examples(16)
        prompts, _ = builder.prompts(histories, candidates)
        rows = zip(prompts, targets, strict=True)
        batch = collate([group_row(prompt, [builder.completion(int(target))]) for prompt, target in rows])
        optimizer.zero_grad()
        (-model(batch)[0].mean()).backward()
        optimizer.step()
    histories, candidates, targets = examples(60)
    prompts, _ = builder.prompts(histories, candidates)
    limit = answer_limit(model.model, builder)
    answers = greedy_answers(model.eval().model, prompts, builder.eos_id, limit)
    texts = [tokenizer.decode(tokens, skip_special_tokens=True) for tokens in answers]
    match = TitleMatcher(builder, titles)
    items = np.array([match(tokens, text) for tokens, text in zip(answers, texts, strict=True)])
    found = answer_series(texts, items, candidates, targets, titles)
    assert found["valid_ratio"].mean() > 0.8
    assert found["hr@1"].mean() > 0.8
